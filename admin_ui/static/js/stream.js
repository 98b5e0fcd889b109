// Streams of completions: server-sent events by fetch, drawn once an animation frame.
import { ApiError, errorOf } from './api.js';

/**
 * Events of a stream as they come. Comments are given too, since a waking model's progress is told in them.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{kind: 'data' | 'comment', text: string}>}
 */
export async function* readEvents(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        if (line.startsWith('data: ')) yield { kind: 'data', text: line.slice(6) };
        else if (line.startsWith(': ')) yield { kind: 'comment', text: line.slice(2) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Runs one completion. Aborting the signal closes the connection, which cancels it upstream.
 * @param {string} url
 * @param {Record<string, string>} headers
 * @param {any} body
 * @param {AbortSignal} signal
 * @param {{onText: (text: string) => void, onWait: (progress: any) => void, onEnd: (end: any) => void}} on
 */
export async function complete(url, headers, body, signal, on) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-mooring-progress': 'true', ...headers },
    body: JSON.stringify(body),
    signal,
    credentials: 'same-origin',
  });
  if (!response.ok || !response.body) throw await errorOf(response);
  let isWhole = false;
  for await (const { kind, text } of readEvents(response.body)) {
    if (kind === 'comment') {
      if (text.startsWith('{')) on.onWait(JSON.parse(text));
      continue;
    }
    if (text === '[DONE]') {
      isWhole = true;
      continue;
    }
    const chunk = JSON.parse(text);
    if (chunk.error) throw new ApiError(200, chunk.error.code, chunk.error.message);
    for (const choice of chunk.choices ?? []) {
      const part = choice.delta?.content ?? choice.text ?? '';
      if (part) on.onText(part);
      if (choice.finish_reason) on.onEnd({ finish_reason: choice.finish_reason });
    }
    if (chunk.usage) on.onEnd({ usage: chunk.usage });
    if (chunk.mooring) on.onEnd({ timings: chunk.mooring });
  }
  if (!isWhole) throw new ApiError(0, 'stream_broke', 'The connection broke before the end.');
}

/**
 * Calls `draw` once an animation frame while there is something new to draw.
 * @param {() => void} draw
 */
export function onFrame(draw) {
  let asked = 0;
  return () => {
    if (asked) return;
    asked = requestAnimationFrame(() => {
      asked = 0;
      draw();
    });
  };
}
