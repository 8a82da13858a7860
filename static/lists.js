// Lists on the page: what the URL asks for, its pages, and rows that stay while their text changes.

/** What the page shows, as its URL says it; names and values are those of the API where it has them. */
export const view = () => Object.fromEntries(new URLSearchParams(location.search));

/** Change what the page shows: a new entry of the history, or instead of the last one. It keeps `state`. */
export function go(changes, state = {}, replace = false) {
  const query = new URLSearchParams(Object.entries({ ...view(), ...changes }).filter(([, value]) => value));
  const url = `${location.pathname}${query.size ? `?${query}` : ""}`;
  history[replace ? "replaceState" : "pushState"]({ ...history.state, ...state }, "", url);
  document.dispatchEvent(new Event("view"));
}
addEventListener("popstate", () => document.dispatchEvent(new Event("view")));

/** The children of an element, one for each item; those that stay are neither moved nor made again. */
export class Rows {
  constructor(parent, template, fill, made = () => {}) {
    Object.assign(this, { parent, template, fill, made, elements: new Map() });
  }

  show(items) {
    const ids = new Set(items.map(({ id }) => id));
    for (const [id, element] of this.elements) {
      if (ids.has(id)) continue;
      const near = element.nextElementSibling ?? element.previousElementSibling;
      const focused = element.contains(document.activeElement);
      element.remove();
      if (focused) near?.querySelector("a, button")?.focus();
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

/** The two buttons under a list. The history keeps the pages before this one, also over a reload. */
export class Pager {
  constructor(element, after) {
    Object.assign(this, { element, after, last: null });
    [this.back, this.on] = element.children;
    this.back.addEventListener("click", () => {
      const before = [...this.before];
      if (view()[after]) go({ [after]: before.pop() ?? "" }, { [after]: before });
    });
    this.on.addEventListener("click", () => {
      const { last } = this;
      this.last = null; // until the next page is there, another click is too early
      if (last) go({ [after]: last }, { [after]: [...this.before, view()[after] ?? ""] });
    });
  }

  get before() {
    return history.state?.[this.after] ?? [];
  }

  /** Show the buttons; `last` is the id of the last row if another page follows. */
  show(last) {
    this.last = last;
    // Not `disabled`, which would take the focus from the button that was just pressed.
    this.back.ariaDisabled = String(!view()[this.after]);
    this.on.ariaDisabled = String(!last);
    this.element.hidden = !last && !view()[this.after];
  }
}
