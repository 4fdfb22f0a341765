// Talking to the server through gradio's queue: one call, messages as they come, an answer or a sentence.

const UNSAID = "The server could not answer; try again in a moment.";

function api(path) {
  return new URL(`gradio_api/${path}`, document.baseURI);
}

/**
 * Call an event by its name.
 * @param onMessage gets every value that the event yields before its end
 * @param signal    of an AbortController; the server stops at the next model once the connection is closed
 * @returns the event's last value
 */
export async function call(name, request, { onMessage = () => {}, signal } = {}) {
  const joined = await fetch(api(`call/${name}`), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data: [request] }),
    signal,
  });
  const answer = await joined.json();
  if (!joined.ok) throw new Error(joined.status === 503 ? "Many people are asking just now; try again in a minute." : UNSAID);
  const stream = await fetch(api(`call/${name}/${answer.event_id}`), { signal });
  for await (const { event, data } of events(stream.body)) {
    if (event === "generating") onMessage(data[0]);
    if (event === "complete") return data?.[0];
    if (event === "error") throw new Error(data?.error ?? (typeof data === "string" ? data : UNSAID));
  }
  throw new Error(UNSAID);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    waiting += value;
    const whole = waiting.split("\n\n");
    waiting = whole.pop();
    for (const block of whole) {
      const event = /^event: (.*)$/m.exec(block)?.[1];
      const data = /^data: (.*)$/m.exec(block)?.[1];
      if (event) yield { event, data: data ? JSON.parse(data) : null };
    }
  }
}

/** Store a file on the server; returns what events take as a picture. */
export async function upload(file) {
  const form = new FormData();
  form.append("files", file);
  const answer = await fetch(api("upload"), { method: "POST", body: form });
  if (!answer.ok) throw new Error(answer.status === 413 ? "This file is larger than 40 MB, which is the limit." : UNSAID);
  const [path] = await answer.json();
  return { path, orig_name: file.name, meta: { _type: "gradio.FileData" } };
}

/** The address of a file that may be read by all. */
export function staticFile(path) {
  return api(`file=${path}`).href;
}
