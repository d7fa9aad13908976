// The inspector.

export function mount(root, app) {
  root.textContent = app.t("nav.inspector");
  return () => {};
}
