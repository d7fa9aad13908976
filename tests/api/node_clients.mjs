// Talks to a server with one of Node's clients: node node_clients.mjs CLIENT URL MODEL.
// Prints one line of JSON with what it got.

const [client, url, model] = process.argv.slice(2);
const base = { baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 };
const fox = "Tell me a story about a fox.";

async function openaiClient() {
  const { default: OpenAI } = await import("openai");
  return new OpenAI(base);
}

async function joined(parts) {
  let text = "";
  for await (const part of parts) text += part;
  return text;
}

const clients = {
  async openai() {
    const openai = await openaiClient();
    const asked = { model, messages: [{ role: "user", content: fox }], temperature: 0, max_tokens: 8 };
    const whole = await openai.chat.completions.create(asked);
    let streamed = "";
    for await (const chunk of await openai.chat.completions.create({ ...asked, stream: true })) {
      streamed += chunk.choices[0]?.delta?.content ?? "";
    }
    const short = { model, temperature: 0, max_output_tokens: 8 };
    const first = await openai.responses.create({ ...short, input: fox });
    const second = await openai.responses.create({
      ...short, input: "On.", previous_response_id: first.id,
    });
    const items = [];
    for await (const item of openai.responses.inputItems.list(second.id, { order: "asc" })) {
      items.push(item.type);
    }
    const read = await openai.responses.retrieve(second.id);
    await openai.responses.delete(second.id);
    const gone = await openai.responses.retrieve(second.id).catch((error) => error.status);
    return {
      same: whole.choices[0].message.content === streamed && streamed.length > 0,
      items, read: read.output_text === second.output_text, gone,
    };
  },

  async ai() {
    const { generateText, streamText } = await import("ai");
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    const provider = createOpenAICompatible({ name: "cllm", baseURL: base.baseURL, apiKey: "none" });
    const asked = { model: provider(model), prompt: fox, temperature: 0, maxOutputTokens: 8 };
    const { text } = await generateText(asked);
    return { same: (await joined(streamText(asked).textStream)) === text && text.length > 0 };
  },

  async anthropic() {
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
    const asked = { model, max_tokens: 8, temperature: 0, messages: [{ role: "user", content: fox }] };
    const whole = await anthropic.messages.create(asked);
    const streamed = await anthropic.messages.stream(asked).finalText();
    const models = await anthropic.models.list();
    return { same: whole.content[0].text === streamed, name: models.data[0].display_name };
  },

  async ollama() {
    const { Ollama } = await import("ollama");
    const ollama = new Ollama({ host: url });
    const asked = {
      model, messages: [{ role: "user", content: fox }], options: { temperature: 0, num_predict: 8 },
    };
    const whole = await ollama.chat(asked);
    let streamed = "";
    for await (const part of await ollama.chat({ ...asked, stream: true })) {
      streamed += part.message.content;
    }
    const format = { type: "object", properties: { a: { enum: [7] } }, required: ["a"] };
    const made = await ollama.generate({ model, prompt: fox, format });
    const { models } = await ollama.list();
    const shown = await ollama.show({ model });
    const vectors = await ollama.embed({ model, input: fox }).catch((error) => error.status_code);
    return {
      same: whole.message.content === streamed && streamed.length > 0, made: JSON.parse(made.response),
      name: models[0].model, capabilities: shown.capabilities, vectors,
    };
  },

  async agents() {
    const { Agent, run, setDefaultOpenAIClient, setOpenAIAPI, setTracingDisabled } =
      await import("@openai/agents");
    setTracingDisabled(true);
    setDefaultOpenAIClient(await openaiClient());
    const agent = new Agent({
      name: "teller", instructions: "Be brief.", model, modelSettings: { temperature: 0 },
    });
    const turns = {};
    for (const api of ["chat_completions", "responses"]) {
      setOpenAIAPI(api);
      const first = await run(agent, "Hello!");
      const more = [...first.history, { role: "user", content: "On." }];
      turns[api] = (await run(agent, more)).finalOutput.length > 0;
      if (api === "responses") {
        const next = await run(agent, "On.", { previousResponseId: first.lastResponseId });
        turns.continued = next.finalOutput.length > 0;
      }
    }
    return turns;
  },
};

console.log(JSON.stringify(await clients[client]()));
