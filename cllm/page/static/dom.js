// Elements: `element("button.primary", {onclick, title}, "Send")`.

export function element(name, properties = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag || "div");
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && !key.startsWith("aria-") && key !== "list") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// A button that shows a sign and says its purpose to screen readers.
export function signButton(sign, label, onclick, properties = {}) {
  return element("button.sign", { type: "button", title: label, "aria-label": label, onclick, ...properties }, sign);
}

export function download(name, value) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// The text of files that the user chooses: [{name, text}].
export function chooseFiles(accept, multiple = false) {
  return new Promise((resolve) => {
    const input = element("input", {
      type: "file", accept, multiple,
      onchange: async () => resolve(await Promise.all(
        [...input.files].map(async (file) => ({ name: file.name, text: await file.text() })))),
      oncancel: () => resolve([]),
    });
    input.className = "chooser";
    input.click();
  });
}
