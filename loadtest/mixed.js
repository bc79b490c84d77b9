// Short and long, whole and streamed, one choice and several, at once: long prompts must not starve short questions.
//
// VUS (16), DURATION (1m), LONG_WORDS (600 words in a long prompt), MAX_TOKENS (200 in a long answer)

import { between, ask, env, isComplete, number, pick, question, setUp, tearDown, within } from './lib/garrick.js';

const LONG_WORDS = number('LONG_WORDS', 600);
const MAX_TOKENS = number('MAX_TOKENS', 200);
const WORDS = ['apple', 'river', 'stone', 'cloud', 'green', 'seven', 'house', 'light'];

// What comes and how often, of ten.
const KINDS = [
  { kind: 'short', share: 5, words: 0, tokens: [1, 24], choices: [1, 1] },
  { kind: 'long_prompt', share: 2, words: LONG_WORDS, tokens: [1, 24], choices: [1, 1] },
  { kind: 'long_answer', share: 2, words: 0, tokens: [MAX_TOKENS / 2, MAX_TOKENS], choices: [1, 1] },
  { kind: 'choices', share: 1, words: 20, tokens: [8, 32], choices: [2, 4] },
];
const DECK = KINDS.flatMap((kind) => Array(kind.share).fill(kind));

export const options = {
  scenarios: { mix: { executor: 'constant-vus', vus: number('VUS', 16), duration: env('DURATION', '1m'), gracefulStop: '60s' } },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    'garrick_accept_ms{kind:short}': [within(95, 200)],
    'garrick_token_ms{kind:long_answer}': [within(95, 150)],
    // Each kind must come, or the run shows nothing.
    ...Object.fromEntries(KINDS.map(({ kind }) => [`http_reqs{kind:${kind}}`, ['count>0']])),
  },
};

export default function mixed() {
  const { kind, words, tokens, choices } = pick(DECK);
  const text = words === 0 ? question(between(0, 5000)) : `Please repeat the words: ${prompt(words)}`;
  const fields = {
    stream: Math.random() < 0.7, max_tokens: Math.round(between(...tokens)), n: between(...choices), ignore_eos: true,
  };
  isComplete(ask(text, fields, { tags: { kind } }));
}

// Each begins differently, so that the prefix cache does not have it already.
function prompt(words) {
  return Array.from({ length: words }, () => pick(WORDS)).join(' ');
}

export const setup = setUp;
export const teardown = tearDown;
