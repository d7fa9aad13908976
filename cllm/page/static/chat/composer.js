// Where a message is written: text, files, send and stop.

import { chooseFiles, element, signButton } from "../dom.js";
import { t } from "../texts.js";

const LARGEST = 1024 * 1024; // characters of a file

export class Composer {
  // send(text, files), stop(); complain(text) shows an error.
  constructor({ send, stop, complain }) {
    this.files = [];
    this.complain = complain;
    this.box = element("textarea", { id: "prompt", rows: 2, placeholder: t("prompt.hint"), "aria-label": t("prompt") });
    this.list = element("div.attached");
    this.sendButton = element("button.primary", { type: "submit", id: "send" }, t("send"));
    this.stopButton = element("button", { type: "button", id: "stop", hidden: true, onclick: stop }, t("stop"));
    this.element = element("form.composer", {}, this.list, this.box, element("div.actions", {},
      signButton("＋", t("attach"), () => this.attach(), { id: "attach" }), this.stopButton, this.sendButton));
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = this.box.value.trim();
      if (this.busy || (!text && !this.files.length)) return;
      const files = this.files;
      if (send(text, files) === false) return;
      this.box.value = "";
      this.files = [];
      this.drawFiles();
    });
    this.box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.element.requestSubmit();
      }
    });
    this.element.addEventListener("dragover", (event) => event.preventDefault());
    this.element.addEventListener("drop", async (event) => {
      event.preventDefault();
      this.take(await Promise.all([...event.dataTransfer.files].map(
        async (file) => ({ name: file.name, text: await file.text() }))));
    });
  }

  setBusy(busy) {
    this.busy = busy;
    const focused = document.activeElement;
    this.sendButton.hidden = busy;
    this.stopButton.hidden = !busy;
    if (focused === this.stopButton || focused === this.sendButton) this.box.focus();
  }

  async attach() {
    this.take(await chooseFiles("", true));
    this.box.focus();
  }

  take(files) {
    for (const file of files) {
      if (file.text.length > LARGEST) this.complain(t("file.large", { name: file.name }));
      else if (/[\u0000\ufffd]/.test(file.text)) this.complain(t("file.binary", { name: file.name }));
      else this.files.push(file);
    }
    this.drawFiles();
  }

  drawFiles() {
    this.list.replaceChildren(...this.files.map((file) => element("span.chip", {}, file.name,
      signButton("×", t("file.remove", { name: file.name }), () => {
        this.files = this.files.filter((other) => other !== file);
        this.drawFiles();
        this.box.focus();
      }))));
  }
}
