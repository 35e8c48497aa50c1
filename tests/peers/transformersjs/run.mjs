// Answers questions with transformers.js from a folder that `laco export --layout transformersjs`
// wrote: node run.mjs <folder> <questions.json>; prints one JSON object with what it did.
import { readFileSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import {
  AutoModelForImageTextToText,
  AutoProcessor,
  AutoTokenizer,
  RawImage,
  env,
} from '@huggingface/transformers';

const folder = resolve(process.argv[2]);
const questions = JSON.parse(readFileSync(process.argv[3], 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const name = basename(folder);

const processor = await AutoProcessor.from_pretrained(name);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name);

const answers = [];
for (const { image, prompt } of questions) {
  const messages = [
    { role: 'user', content: [{ type: 'image' }, { type: 'text', text: prompt }] },
  ];
  const text = tokenizer.apply_chat_template(messages, {
    tokenize: false,
    add_generation_prompt: true,
  });
  const inputs = await processor(await RawImage.read(image), text, { add_special_tokens: false });
  const output = await model.generate({ ...inputs, max_new_tokens: 8, do_sample: false });
  const ids = Array.from(inputs.input_ids.data, Number);
  const all = Array.from(output.data, Number);
  answers.push({
    ids,
    tokens: all.slice(ids.length),
    pixels: Array.from(inputs.pixel_values.data.slice(0, 8)),
    text: tokenizer.decode(all.slice(ids.length), { skip_special_tokens: true }),
  });
}
console.log(JSON.stringify({ answers }));
