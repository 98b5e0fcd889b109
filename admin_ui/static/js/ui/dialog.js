// Dialogs: the browser's own, which keep the focus and close with Escape.
import { html, useEffect, useRef, useState } from '../lib.js';
import { ApiError } from '../api.js';
import { say } from '../store.js';

/**
 * A dialog that is open while it is there.
 * @param {{title: string, onClose: () => void, children: any, foot?: any, onSubmit?: (event: Event) => void, label?: string}} props
 */
export function Dialog({ title, onClose, children, foot, onSubmit }) {
  const box = useRef(/** @type {any} */ (null));
  useEffect(() => {
    const before = /** @type {HTMLElement | null} */ (document.activeElement);
    box.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  const inside = html`<header><h2 id="dialog-title">${title}</h2></header>
    <div class="content">${children}</div>
    <footer>${foot}</footer>`;
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onCancel=${(/** @type {Event} */ event) => { event.preventDefault(); onClose(); }}>
    ${onSubmit ? html`<form onSubmit=${onSubmit} novalidate>${inside}</form>` : html`<div class="inside">${inside}</div>`}
  </dialog>`;
}

/**
 * A dialog with fields, which stays open until its change has been made.
 * @param {{title: string, action: string, kind?: string, onClose: () => void, children: (error: ApiError | null) => any,
 *   run: () => Promise<any>, done?: string}} props
 */
export function FormDialog({ title, action, kind = '', onClose, children, run, done }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(/** @type {ApiError | null} */ (null));
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const keepsOpen = await run();
      if (done) say(done);
      if (keepsOpen !== true) onClose();
      else setBusy(false);
    } catch (failed) {
      setError(/** @type {ApiError} */ (failed));
      setBusy(false);
    }
  };
  const foot = html`<button type="button" onClick=${onClose}>Cancel</button>
    <button type="submit" class=${`primary ${kind}`} disabled=${busy} aria-busy=${busy}>${busy ? 'Working …' : action}</button>`;
  return html`<${Dialog} title=${title} onClose=${onClose} onSubmit=${submit} foot=${foot}>
    ${children(error)}
    ${error && html`<p class="error-text" role="alert">${error.message}</p>`}
  <//>`;
}

/**
 * A field with its label, hint and error.
 * @param {{label: string, hint?: any, error?: string | null, children: (id: string, attributes: any) => any}} props
 */
export function Field({ label, hint, error, children }) {
  const [id] = useState(() => `field-${++counter}`);
  const attributes = { 'aria-invalid': error ? 'true' : undefined, 'aria-describedby': hint || error ? `${id}-hint` : undefined };
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children(id, attributes)}
    ${(hint || error) && html`<span id=${`${id}-hint`} class=${error ? 'error' : 'hint'}>${error ?? hint}</span>`}
  </div>`;
}
let counter = 0;

/** @param {{label: string, value: string, onInput: (value: string) => void, hint?: any, error?: string | null, [more: string]: any}} props */
export const TextField = ({ label, value, onInput, hint, error, ...rest }) => html`<${Field} label=${label} hint=${hint} error=${error}>
  ${(/** @type {string} */ id, /** @type {any} */ attributes) => html`<input id=${id} value=${value} ...${attributes} ...${rest} autocomplete="off" spellcheck=${false}
    onInput=${(/** @type {any} */ event) => onInput(event.target.value)} />`}
<//>`;

/** @param {{label: string, value: string, choices: [string, string][], onChange: (value: string) => void, hint?: any, [more: string]: any}} props */
export const Choice = ({ label, value, choices, onChange, hint, ...rest }) => html`<${Field} label=${label} hint=${hint}>
  ${(/** @type {string} */ id, /** @type {any} */ attributes) => html`<select id=${id} ...${attributes} ...${rest} onChange=${(/** @type {any} */ event) => onChange(event.target.value)}>
    ${choices.map(([each, text]) => html`<option key=${each} value=${each} selected=${each === value}>${text}</option>`)}
  </select>`}
<//>`;

/** @param {{label: string, checked: boolean, onChange: (checked: boolean) => void, hint?: any}} props */
export const Check = ({ label, checked, onChange, hint }) => html`<label class="check">
  <input type="checkbox" checked=${checked} onChange=${(/** @type {any} */ event) => onChange(event.target.checked)} />
  <span>${label}${hint && html`<span class="hint">${hint}</span>`}</span>
</label>`;

/** A button that copies a text. @param {{text: string, label?: string}} props */
export function Copy({ text, label = 'Copy' }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setDone(true);
      setTimeout(() => setDone(false), 1500);
    } catch {
      say('The browser does not allow copying here: select the text instead.', 'bad');
    }
  };
  return html`<button type="button" class="small" onClick=${copy}>${done ? 'Copied' : label}</button>`;
}

/** Runs a change and says how it went; true if it went well. @param {() => Promise<any>} run @param {string} [done] */
export async function tried(run, done) {
  try {
    await run();
    if (done) say(done);
    return true;
  } catch (failed) {
    say(/** @type {Error} */ (failed).message, 'bad');
    return false;
  }
}
