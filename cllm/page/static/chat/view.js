// The chat.

export function mount(root, app) {
  root.textContent = app.t("nav.chat");
  return () => {};
}
