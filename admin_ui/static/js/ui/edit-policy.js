// The dialog that changes a deployment's policy.
import { html, useState } from '../lib.js';
import { inPath, patch } from '../api.js';
import { FormDialog } from './dialog.js';
import { changesOf, formOf, PolicyFields } from './policy.js';

/** @param {{name: string, policy: any, onClose: () => void, onDone: () => void}} props */
export function EditPolicy({ name, policy, onClose, onDone }) {
  const [before] = useState(() => formOf(policy));
  const [form, setForm] = useState(before);
  const { changes, errors } = changesOf(before, form);
  const run = async () => {
    if (Object.keys(errors).length) throw new Error('Some fields cannot be read.');
    if (!Object.keys(changes).length) return;
    await patch(`deployments/${inPath(name)}`, changes);
    onDone();
  };
  return html`<${FormDialog} title=${`Policy of ${name}`} action="Save" done="Saved." onClose=${onClose} run=${run}>
    ${() => html`<${PolicyFields} form=${form} onChange=${setForm} errors=${errors} />`}
  <//>`;
}
