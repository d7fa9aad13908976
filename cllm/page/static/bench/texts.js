// The benchmark view's texts.

export const texts = {
  en: {
    "bench.requests": "Requests", "bench.concurrency": "At a time (1, 4, 8)", "bench.max_tokens": "Most tokens",
    "bench.prompt": "Prompt", "bench.standard": "The server's own prompt", "bench.run": "Run", "bench.stop": "Stop",
    "bench.running": "Running with {n} requests at a time…", "bench.done": "Done.", "bench.stopped": "Stopped.",
    "bench.avg_throughput": "Throughput", "bench.time_to_first_token": "Time to first token",
    "bench.p50_response_time": "Response time, median", "bench.p95_response_time": "Response time, 95 %",
    "bench.p99_response_time": "Response time, 99 %", "bench.runs": "Run", "bench.model": "Model", "bench.time": "When",
    "bench.succeeded": "Succeeded", "bench.shown": "Shown", "bench.removal": "Remove", "bench.show": "Show {n}", "bench.remove": "Remove {n}", "bench.export": "Export all runs",
    "bench.none": "No run yet. Runs stay in this browser.",
  },
  zh: {
    "bench.requests": "请求数", "bench.concurrency": "并发数 (1, 4, 8)", "bench.max_tokens": "最多词元",
    "bench.prompt": "提示", "bench.standard": "服务器自带的提示", "bench.run": "运行", "bench.stop": "停止",
    "bench.running": "正在以 {n} 个并发请求运行…", "bench.done": "完成。", "bench.stopped": "已停止。",
    "bench.avg_throughput": "吞吐量", "bench.time_to_first_token": "首词元时间",
    "bench.p50_response_time": "响应时间中位数", "bench.p95_response_time": "响应时间 95 %",
    "bench.p99_response_time": "响应时间 99 %", "bench.runs": "运行", "bench.model": "模型", "bench.time": "时间",
    "bench.succeeded": "成功", "bench.shown": "显示", "bench.removal": "移除", "bench.show": "显示 {n}", "bench.remove": "移除 {n}", "bench.export": "导出全部运行",
    "bench.none": "尚无运行记录。记录保存在此浏览器中。",
  },
};
