// Chinese texts.

export const zh = {
  nav: "视图", "nav.chat": "对话", "nav.inspector": "检视", "nav.monitor": "监控", "nav.bench": "基准测试",
  language: "切换语言 (English)", theme: "切换浅色与深色", skip: "跳到内容",
  loading: "正在加载模型…", "view.failed": "无法加载此视图。",
  cancel: "取消", ok: "确定",
  "key.title": "API 密钥", "key.label": "密钥", "key.needed": "此服务器需要 API 密钥。密钥只保留在此标签页中。",
  "key.wrong": "此服务器不接受该密钥，请输入其他密钥。",
};
