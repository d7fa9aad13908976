// The benchmark.

export function mount(root, app) {
  root.textContent = app.t("nav.bench");
  return () => {};
}
