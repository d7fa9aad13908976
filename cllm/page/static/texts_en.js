// English texts.

export const en = {
  nav: "Views", "nav.chat": "Chat", "nav.inspector": "Inspector", "nav.monitor": "Monitor", "nav.bench": "Benchmark",
  language: "Change the language (中文)", theme: "Change between light and dark", skip: "Skip to content",
  loading: "the model is loading…", "view.failed": "This view could not be loaded.",
  cancel: "Cancel", ok: "OK",
  "key.title": "API key", "key.label": "Key", "key.needed": "This server requires an API key. It stays in this tab.",
  "key.wrong": "The key is not valid for this server. Enter another one.",
};
