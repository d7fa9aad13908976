// The messages of a conversation as a tree: each answer and each edit is a branch.

export class Tree {
  constructor(messages = []) {
    this.nodes = new Map();
    this.children = new Map([[null, []]]);
    for (const message of [...messages].sort((a, b) => a.created - b.created || a.order - b.order)) {
      this.add(message);
    }
  }

  add(message) {
    this.nodes.set(message.id, message);
    const parent = message.parent ?? null;
    if (!this.children.has(parent)) this.children.set(parent, []);
    this.children.get(parent).push(message);
    if (!this.children.has(message.id)) this.children.set(message.id, []);
  }

  // From the first message to this one.
  path(id) {
    const found = [];
    for (let node = this.nodes.get(id); node; node = this.nodes.get(node.parent)) found.push(node);
    return found.reverse();
  }

  // The alternatives to a message, with itself.
  siblings(message) {
    return this.children.get(message.parent ?? null);
  }

  // The newest end below a message.
  leafBelow(id) {
    for (;;) {
      const children = this.children.get(id);
      if (!children?.length) return id;
      id = children[children.length - 1].id;
    }
  }
}
