// A frontend's whole client: `await sendChatMessage("Why is the sky blue?")` gives the answer's text.

interface Options {
  url?: string;
  key?: string; // not needed while the bridge has no keys
  signal?: AbortSignal; // aborting it cancels the request, and the model's call with it
}

interface ChatReply {
  response: string;
}

interface ChatError {
  error: { type: string; message: string; retry_after_s: number | null };
}

export async function sendChatMessage(text: string, options: Options = {}): Promise<string> {
  const { url = "http://127.0.0.1:8001", key, signal } = options;
  const answer = await fetch(`${url}/api/chat`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) },
    body: JSON.stringify({ messages: [{ role: "user", content: text }] }),
    signal: signal ?? null,
  });
  if (!answer.ok) {
    const { error } = (await answer.json()) as ChatError;
    throw new Error(`${error.type}: ${error.message}`);
  }
  return ((await answer.json()) as ChatReply).response;
}
