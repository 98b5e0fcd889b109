// A request as commands and programs that send it.
import { html, useState } from '../lib.js';
import { Copy } from './dialog.js';
import { Segmented } from './parts.js';

/** A value as Python writes it. @param {any} value @returns {string} */
function python(value) {
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (Array.isArray(value)) return `[${value.map(python).join(', ')}]`;
  if (typeof value === 'object') return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(', ')}}`;
  return JSON.stringify(value);
}

/** @param {string} server @param {'chat' | 'text'} kind @param {any} body */
function curl(server, kind, body) {
  const data = JSON.stringify(body, null, 2).replace(/'/g, "'\\''");
  return `curl ${server}/v1/${kind === 'chat' ? 'chat/completions' : 'completions'} \\
  -H "Authorization: Bearer $MOORING_API_KEY" \\
  -H 'Content-Type: application/json' \\
  -d '${data}'`;
}

/** @param {string} server @param {'chat' | 'text'} kind @param {any} body */
function openai(server, kind, body) {
  const call = kind === 'chat' ? 'chat.completions' : 'completions';
  const fields = Object.entries(body).map(([name, value]) => `    ${name}=${python(value)},`).join('\n');
  const part = kind === 'chat' ? 'chunk.choices[0].delta.content' : 'chunk.choices[0].text';
  return `from openai import OpenAI

client = OpenAI(base_url="${server}/v1", api_key="YOUR_KEY")
stream = client.${call}.create(
${fields}
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(${part} or "", end="", flush=True)
`;
}

/** @param {string} server @param {'chat' | 'text'} kind @param {any} body */
function triton(server, kind, body) {
  const { model, messages, prompt, ...parameters } = body;
  const text = prompt ?? messages.map((/** @type {any} */ each) => each.content).join('\n');
  const host = server.replace(/^https?:\/\//, '').replace(/:\d+$/, '');
  if (parameters.stop) parameters.stop = parameters.stop[0];
  return `import numpy as np
import tritonclient.grpc as triton

text = triton.InferInput("text_input", [1], "BYTES")
text.set_data_from_numpy(np.array([${JSON.stringify(text)}.encode()], dtype=object))
with triton.InferenceServerClient("${host}:8001") as client:
    result = client.infer(
        ${JSON.stringify(model)},
        [text],
        parameters=${python(parameters)},
        headers={"authorization": "Bearer YOUR_KEY"},
    )
    print(result.as_numpy("text_output")[0].decode())
`;
}

const WAYS = { curl, Python: openai, tritonclient: triton };

/** @param {{kind: 'chat' | 'text', server: string, body: any}} props */
export function Code({ kind, server, body }) {
  const [way, setWay] = useState(/** @type {keyof typeof WAYS} */ ('curl'));
  const text = WAYS[way](server, kind, body);
  return html`<div class="row spread"><${Segmented} label="Language" value=${way} choices=${Object.keys(WAYS).map((each) => [each, each])} onChange=${setWay} /><${Copy} text=${text} /></div>
    <pre class="code" tabindex="0" aria-label=${`The request in ${way}`}>${text}</pre>
    ${way === 'tritonclient' && kind === 'chat' && html`<p class="small faint">Over KServe a text is sent as it is: the model's chat template is not applied.</p>`}`;
}
