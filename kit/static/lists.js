// Lists on the page: rows that stay where and what they are while their text changes, and pages of them.

import { call } from "./api.js";

/** Write only what differs, so that nothing flickers and no selection is lost; text stays text. */
export function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The children of an element, one for each item of a list; those that stay are neither moved nor made again. */
export class Rows {
  constructor(parent, template, fill, made = () => {}) {
    Object.assign(this, { parent, template, fill, made, elements: new Map() });
  }

  show(items) {
    const ids = new Set(items.map(({ id }) => id));
    for (const [id, element] of this.elements) {
      if (ids.has(id)) continue;
      element.remove();
      this.elements.delete(id);
    }
    let place = this.parent.firstElementChild;
    for (const item of items) {
      let element = this.elements.get(item.id);
      if (element) {
        place = element.nextElementSibling;
      } else {
        element = this.template.content.firstElementChild.cloneNode(true);
        this.elements.set(item.id, element);
        this.parent.insertBefore(element, place);
        this.made(element, item);
      }
      this.fill(element, item);
    }
  }
}

/** A list of the API, a page at a time; `trail` holds the pages before this one, `next` the one after it. */
export class Pages {
  constructor(url, rows, pager, none) {
    Object.assign(this, { url, rows, pager, none, trail: [], next: null, moved: false });
    [this.back, this.on] = pager.children;
    this.back.addEventListener("click", () => this.trail.length && this.go(this.trail.pop(), this.trail));
    this.on.addEventListener("click", () => this.next && this.go(this.next));
  }

  /** Turn to another page; the one that is left is added to the trail, unless another trail is given. */
  go(url, trail = [...this.trail, this.url]) {
    Object.assign(this, { url, trail, next: null, moved: true });
    this.pager.dispatchEvent(new Event("turn", { bubbles: true }));
  }

  /** Ask for this page again and show it; returns its items, or null if the user has moved on meanwhile. */
  async poll() {
    const { url } = this;
    const { items, next } = await call(url);
    if (url !== this.url) return null;
    this.next = next;
    this.rows.show(items);
    // Not `disabled`, which would take the focus from the button that was just pressed.
    this.back.ariaDisabled = String(!this.trail.length);
    this.on.ariaDisabled = String(!next);
    this.pager.hidden = !next && !this.trail.length;
    this.none.hidden = items.length > 0;
    return items;
  }
}
