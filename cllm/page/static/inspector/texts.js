// The inspector's texts.

export const texts = {
  en: {
    probabilities: "Probabilities", "probabilities.hint": "Ask, then point at a token to see what else was likely. An alternative begins a branch at its token.",
    ask: "Question", run: "Run", halt: "Stop", most: "Most tokens", warmth: "Temperature", branchlist: "Branches of the answer",
    answer: "Answer", alternatives: "Alternatives", "branch.first": "First answer", "branch.from": "{n}: token {place} “{token}”",
    "continue.from": "Continue from this alternative", "continue.not": "It ends the answer or is a part of a character",
    taken: "in the answer", "to.chat": "Open in the chat", place: "Token {n}", legend: "Probability",
    tokens: "Tokens", "tokens.text": "Any text", "tokens.special": "Add the tokens that begin a prompt",
    "tokens.count": "{n} tokens, {characters} characters",
    "prompt.title": "Rendered prompt", "prompt.messages": "Messages (JSON)", "prompt.apply": "Apply the chat template",
    "prompt.rendered": "Rendered prompt",
  },
  zh: {
    probabilities: "概率", "probabilities.hint": "提问后，将指针移到词元上查看其他可能。选择一个备选即从该词元开始新分支。",
    ask: "问题", run: "运行", halt: "停止", most: "最多词元", warmth: "温度", branchlist: "回答的分支",
    answer: "回答", alternatives: "备选", "branch.first": "首个回答", "branch.from": "{n}：第 {place} 个词元“{token}”",
    "continue.from": "从此备选继续", "continue.not": "它结束回答，或只是字符的一部分",
    taken: "回答所用", "to.chat": "在对话中打开", place: "第 {n} 个词元", legend: "概率",
    tokens: "词元", "tokens.text": "任意文本", "tokens.special": "添加提示开头的特殊词元",
    "tokens.count": "{n} 个词元，{characters} 个字符",
    "prompt.title": "渲染后的提示", "prompt.messages": "消息 (JSON)", "prompt.apply": "应用对话模板",
    "prompt.rendered": "渲染后的提示",
  },
};
