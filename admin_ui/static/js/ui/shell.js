// The frame of every page: navigation, the state of the feed, the scheme.
import { html, useEffect, useRef, useState } from '../lib.js';
import { send } from '../api.js';
import { unfollow } from '../live.js';
import { Link, place } from '../router.js';
import { alerts, connection, deployments, isKnown, server, session, trouble } from '../store.js';
import { storedTheme, storeTheme } from '../theme.js';
import { Icon } from './parts.js';
import { Toasts } from './toast.js';

/**
 * The navigation. Cost, audit and reports get their places here with the issues that make them.
 * @type {{title: string, items: {path: string, text: string, icon: any, count?: () => number | null}[]}[]}
 */
const NAVIGATION = [
  {
    title: 'Now',
    items: [
      { path: '', text: 'Overview', icon: 'overview', count: () => Object.keys(alerts.value).length || null },
      { path: 'memory', text: 'Memory map', icon: 'memory' },
      { path: 'timeline', text: 'Residency', icon: 'timeline' },
    ],
  },
  {
    title: 'Models',
    items: [
      { path: 'deployments', text: 'Deployments', icon: 'deployments', count: () => (isKnown.value ? Object.keys(deployments.value).length : null) },
      { path: 'register', text: 'Register', icon: 'register' },
      { path: 'playground', text: 'Playground', icon: 'playground' },
    ],
  },
  {
    title: 'Access',
    items: [
      { path: 'tenants', text: 'Tenants and keys', icon: 'tenants' },
      { path: 'classes', text: 'SLO classes', icon: 'classes' },
    ],
  },
];

const CONNECTION = {
  connecting: ['warn', 'Connecting'],
  live: ['good', 'Live'],
  reconnecting: ['warn', 'Reconnecting'],
  trouble: ['bad', 'No feed'],
};

/** @param {any} props */
const Brand = (props) => html`<${Link} to="/" class="brand" ...${props}><img src=${new URL('../../logo.svg', import.meta.url).pathname} alt="" />Mooring<//>`;

export function ThemeSwitch() {
  const [theme, setTheme] = useState(storedTheme);
  const next = theme === 'auto' ? 'light' : theme === 'light' ? 'dark' : 'auto';
  const press = () => {
    storeTheme(next);
    setTheme(next);
  };
  const names = { auto: 'as the system', light: 'light', dark: 'dark' };
  return html`<button class="plain icon" onClick=${press} aria-label=${`Scheme: ${names[theme]}. Change to ${names[next]}`} title=${`Scheme: ${names[theme]}`}>
    <${Icon} name=${theme === 'auto' ? 'auto' : theme === 'light' ? 'sun' : 'moon'} />
  </button>`;
}

async function logOut() {
  await send('POST', '/logout').catch(() => {});
  unfollow();
  session.value = null;
}

const Feed = () => {
  const [kind, text] = CONNECTION[connection.value];
  return html`<span class=${`badge ${kind}`} role="status">${text}</span>`;
};

/** @param {{onGo?: () => void}} props */
function Nav({ onGo }) {
  const shown = place.value.path;
  return html`<nav class="nav" aria-label="Pages">
    <${Brand} />
    ${NAVIGATION.map((group) => html`<div key=${group.title}><h2>${group.title}</h2><ul>
      ${group.items.map(({ path, text, icon, count }) => {
        const isHere = shown === path || (path !== '' && shown.startsWith(`${path}/`));
        return html`<li key=${path}><${Link} to=${`/${path}`} aria-current=${isHere ? 'page' : undefined} onClickCapture=${onGo}>
          <${Icon} name=${icon} />${text}${count?.() != null && html`<span class="count">${count()}</span>`}
        <//></li>`;
      })}
    </ul></div>`)}
    <div class="nav-foot">
      <div class="row"><${Feed} /><${ThemeSwitch} /></div>
      <div class="row"><span>${server.value.version ? `Version ${server.value.version}` : ''}</span><button class="plain small" onClick=${logOut}>Log out</button></div>
    </div>
  </nav>`;
}

/** @param {{onClose: () => void}} props */
function NavDialog({ onClose }) {
  const box = useRef(/** @type {any} */ (null));
  useEffect(() => box.current.showModal(), []);
  const outside = (/** @type {any} */ event) => event.target === box.current && onClose();
  return html`<dialog class="nav-dialog" ref=${box} aria-label="Pages" onClose=${onClose} onClick=${outside}><${Nav} onGo=${() => setTimeout(onClose)} /></dialog>`;
}

function Banner() {
  if (connection.value === 'reconnecting') return html`<div class="banner" role="status">The UI's own process does not answer. Trying again; what is shown is old.</div>`;
  if (connection.value === 'trouble') return html`<div class="banner bad" role="alert">No live figures: ${trouble.value}. Trying again; what is shown is old.</div>`;
  return null;
}

/** @param {{children: any}} props */
export function Shell({ children }) {
  const [open, setOpen] = useState(false);
  return html`<a class="skip" href="#main">To the content</a>
    <header class="topbar">
      <button class="plain icon" aria-label="Pages" aria-haspopup="dialog" onClick=${() => setOpen(true)}><${Icon} name="menu" /></button>
      <${Brand} /><${Feed} />
    </header>
    ${open && html`<${NavDialog} onClose=${() => setOpen(false)} />`}
    <div class="frame">
      <${Nav} />
      <main id="main" tabindex="-1"><div class="page"><${Banner} />${children}</div></main>
    </div>
    <${Toasts} />`;
}
