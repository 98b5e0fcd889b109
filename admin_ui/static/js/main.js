// The start: who is there, and which page is shown.
import { html, render, useEffect, useState } from './lib.js';
import { follow } from './live.js';
import { Login, takeLink } from './pages/login.js';
import { place } from './router.js';
import { session } from './store.js';
import { Empty, Problem, Skeleton } from './ui/parts.js';
import { Shell } from './ui/shell.js';

/** Pages by the first step of their address; each is fetched when it is first shown. */
const PAGES = /** @type {Record<string, () => Promise<{default: any}>>} */ ({
  '': () => import('./pages/overview.js'),
  memory: () => import('./pages/memory.js'),
  timeline: () => import('./pages/timeline.js'),
  deployments: () => import('./pages/deployments.js'),
  register: () => import('./pages/register.js'),
  playground: () => import('./pages/playground.js'),
  tenants: () => import('./pages/tenants.js'),
  classes: () => import('./pages/classes.js'),
});

/** @type {Map<string, any>} */
const loaded = new Map();

/** @param {{name: string, rest: string}} props */
function Page({ name, rest }) {
  const [, setRound] = useState(0);
  const [error, setError] = useState(/** @type {any} */ (null));
  const find = PAGES[name];
  useEffect(() => {
    setError(null);
    if (find && !loaded.has(name)) {
      find().then(
        (found) => {
          loaded.set(name, found.default);
          setRound((value) => value + 1);
        },
        () => setError(new Error('This page could not be fetched. The UI may have been updated: load it again.')),
      );
    }
  }, [name]);
  if (!find) return html`<${Empty} title="There is no such page"><p>The address may be old, or mistyped.</p><//>`;
  if (error) return html`<${Problem} error=${error} retry=${() => location.reload()} />`;
  const Found = loaded.get(name);
  return Found ? html`<${Found} rest=${rest} />` : html`<${Skeleton} />`;
}

function App() {
  if (session.value === null) return html`<${Login} />`;
  const [name, ...rest] = place.value.path.split('/');
  return html`<${Shell}><${Page} name=${name} rest=${rest.join('/')} /><//>`;
}

const root = /** @type {HTMLElement} */ (document.getElementById('app'));

if (document.documentElement.dataset.page === 'playground') {
  const { Visitor } = await import('./pages/visitor.js');
  render(html`<${Visitor} />`, root);
} else {
  const told = root.dataset.session;
  delete root.dataset.session; // it has a token, which nobody needs to find here
  await takeLink();
  session.value ??= told ? JSON.parse(told) : await asked();
  if (session.peek()) follow();
  render(html`<${App} />`, root);
}

/** Who is logged in, where the page was told of nobody: a link from another site brings no cookie along. */
async function asked() {
  const response = await fetch('/session', { credentials: 'same-origin' }).catch(() => null);
  const found = response?.ok ? await response.json() : null;
  return found?.token ? found : null;
}
