// Addresses: which page is shown, and links that lead from one to another without loading anew.
import { html, signal } from './lib.js';

/** @typedef {{path: string, query: URLSearchParams}} Place */

/** @returns {Place} */
function here() {
  let path = location.pathname.replace(/^\/+|\/+$/g, '');
  try {
    path = decodeURIComponent(path);
  } catch {
    // It was mistyped; there is no such page.
  }
  return { path, query: new URLSearchParams(location.search) };
}

export const place = signal(here());
addEventListener('popstate', () => {
  place.value = here();
});

/**
 * Goes to a page.
 * @param {string} to - path and query, from `/`
 * @param {boolean} [replace] - in place of the present one
 */
export function go(to, replace = false) {
  if (to === location.pathname + location.search) return;
  history[replace ? 'replaceState' : 'pushState'](null, '', to);
  const before = place.peek().path;
  place.value = here();
  if (before !== place.peek().path) {
    scrollTo(0, 0);
    document.getElementById('main')?.focus({ preventScroll: true });
  }
}

/** A link within the UI. @param {any} props */
export function Link({ to, children, ...rest }) {
  const follow = (/** @type {MouseEvent} */ event) => {
    if (event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(to);
  };
  return html`<a href=${to} onClick=${follow} ...${rest}>${children}</a>`;
}

/** The address of a deployment's page. @param {string} name */
export const deploymentPath = (name) => `/deployments/${name.split('/').map(encodeURIComponent).join('/')}`;
/** The address of a tenant's page. @param {string} name */
export const tenantPath = (name) => `/tenants/${encodeURIComponent(name)}`;
