// Draws and scores. Their twin sorts; it has the weights' arithmetic in common with the kernels, since bits must agree: that
// this is close to exp is shown in src/sample/weight.rs, where the same operations stand.
#include <algorithm>
#include "harness.h"
using namespace test;

static const Dim BLOCK{256};
static constexpr int CHUNK = 4096, MAX_TOP = 32, LISTED = 8192;
static constexpr uint32_t NO_TOKEN = 0xffffffffu, BANNED = 0xffffffffu;
static constexpr uint64_t WHOLE = 1ull << 53;
struct Draw {
  uint32_t row, first_change, num_changes, top_k;
  float temperature, min_p, repetition_penalty, frequency_penalty, presence_penalty;
  uint32_t reserved;
  uint64_t top_p, at;
};
struct Change { uint32_t token, seen; float bias; };
struct Score { uint32_t row, token, draw, top; };
struct Best { float logit; uint32_t token; };
struct Scored { float max, logit; uint32_t rank, token; uint64_t total; Best top[MAX_TOP]; };
constexpr size_t TALLY_WORDS = (16 + 2048 * 12) / 4;

static uint64_t units(float x) {
  if (!(x >= -87.f)) return 0;
  const float rounded = x * 1.4426950408889634f + 12582912.f, n = rounded - 12582912.f;
  const float r = x - n * 0.6933594f - n * -2.1219444e-4f;
  float p = 1.9875691e-4f;
  for (float c : {1.3981999e-3f, 8.333452e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f}) p = p * r + c;
  const double e = ldexpf(p * r * r + r + 1.f, int(n));
  return uint64_t(nearbyint(e * 1099511627776.));
}
static double weight(uint64_t units) { return double(units) / 1099511627776.; }

struct Case {
  int vocab, rows;
  Buffer<float> logits;
  std::vector<Draw> draws;
  std::vector<Change> changes;
  std::vector<Score> scores;
  Case(int vocab, int rows) : vocab(vocab), rows(rows), logits(size_t(vocab) * rows) { logits.fill(-7, 7); }
  int chunks() const { return (vocab + CHUNK - 1) / CHUNK; }
  void add(Draw d) {
    d.at = (uint64_t(random_bits()) << 21) + random_bits() % (1 << 21);
    draws.push_back(d);
  }
};
static Draw plain(uint32_t row) { return {row, 0, 0, 0, 0.8f, 0, 1, 0, 0, 0, WHOLE, 0}; }

static bool before(Best a, Best b) { return a.logit > b.logit || (a.logit == b.logit && a.token < b.token); }
static std::vector<Best> ranking(const float* row, int vocab) {
  std::vector<Best> order;
  for (int i = 0; i < vocab; ++i) order.push_back({row[i], uint32_t(i)});
  std::sort(order.begin(), order.end(), before);
  return order;
}

static uint32_t drawn_by_twin(const Case& c, const Draw& d) {
  std::vector<float> row(&c.logits[size_t(d.row) * c.vocab], &c.logits[size_t(d.row) * c.vocab] + c.vocab);
  for (const Draw& of : c.draws) {
    if (of.row != d.row) continue;
    for (uint32_t i = 0; i < of.num_changes; ++i) {
      const Change change = c.changes[of.first_change + i];
      float& x = row[change.token];
      if (change.seen == BANNED) { x = -INFINITY; continue; }
      if (change.seen > 0) x = x > 0 ? x / of.repetition_penalty : x * of.repetition_penalty;
      if (change.seen > 1) x = x - float(change.seen - 1) * of.frequency_penalty - of.presence_penalty;
      x += change.bias;
    }
  }
  auto order = ranking(row.data(), c.vocab);
  const float max = order[0].logit;
  if (d.temperature <= 0 || std::isinf(max)) return order[0].token;
  for (auto& b : order) b.logit = (b.logit - max) / d.temperature;
  std::sort(order.begin(), order.end(), before);  // the division may have made equals
  while (units(order.back().logit) == 0) order.pop_back();
  if (d.top_k > 0 && d.top_k < order.size()) order.resize(d.top_k);
  unsigned __int128 total = 0, sum = 0;
  for (auto b : order) total += units(b.logit);
  size_t keep = 0;
  while (keep < order.size() && (keep == 0 || sum * WHOLE < d.top_p * total)) sum += units(order[keep++].logit);
  order.resize(keep);
  std::sort(order.begin(), order.end(), [](Best a, Best b) { return a.token < b.token; });
  const auto likely = [&](Best b) { return weight(units(b.logit)) >= d.min_p ? units(b.logit) : 0; };
  total = sum = 0;
  for (auto b : order) total += likely(b);
  for (auto b : order) {
    sum += likely(b);
    if (sum > d.at * total / WHOLE) return b.token;
  }
  return NO_TOKEN;
}

template <class T> static Buffer<T> buffer_of(const std::vector<T>& values) {
  Buffer<T> b(values.size());
  for (size_t i = 0; i < values.size(); ++i) b[i] = values[i];
  return b;
}

// All kernels in their order; checks tokens, scores, and that logits are as they were.
static void check(const Case& c) {
  const uint32_t chunks = c.chunks(), n = c.draws.size(), m = c.scores.size();
  const auto logits = c.logits.copy();
  const auto draws = buffer_of(c.draws);
  const auto changes = buffer_of(c.changes);
  const auto scores = buffer_of(c.scores);
  Buffer<float> kept(c.changes.size()), best_logits((n + m) * chunks);
  Buffer<uint32_t> best_tokens((n + m) * chunks), tallies(n * TALLY_WORDS), tokens(n);
  Buffer<uint64_t> totals(n * chunks);
  Buffer<Best> lists(size_t(n) * LISTED), parts(size_t(m) * chunks * MAX_TOP);
  memset(tallies.data(), 0, tallies.size() * 4);
  launch("sample_change", {n, 2}, BLOCK, 0, logits.data(), kept.data(), draws.data(), changes.data(), c.vocab, 0);
  launch("sample_best", {chunks, n}, BLOCK, 0, best_logits.data(), best_tokens.data(), draws.data(), int(sizeof(Draw) / 4),
         logits.data(), c.vocab);
  launch("sample_weigh", {chunks, n}, BLOCK, 0, tallies.data(), totals.data(), draws.data(), best_logits.data(),
         best_tokens.data(), logits.data(), c.vocab);
  launch("sample_list", {chunks, n}, BLOCK, 0, tallies.data(), lists.data(), draws.data(), best_logits.data(),
         best_tokens.data(), logits.data(), c.vocab);
  launch("sample_draw", {n}, BLOCK, 0, tokens.data(), tallies.data(), totals.data(), lists.data(), draws.data(),
         best_logits.data(), best_tokens.data(), logits.data(), c.vocab, int(chunks));
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t want = drawn_by_twin(c, c.draws[i]);
    expect(tokens[i] == want, "draw " + std::to_string(i) + " gives " + std::to_string(tokens[i]) + ", not " + std::to_string(want));
  }
  launch("sample_change", {n, 1}, BLOCK, 0, logits.data(), kept.data(), draws.data(), changes.data(), c.vocab, 1);
  expect_same_bits("logits", logits, c.logits);
  Buffer<Scored> scored(m);
  if (m == 0) return;
  memset(scored.data(), 0, m * sizeof(Scored));
  launch("sample_best", {chunks, m}, BLOCK, 0, best_logits.data(), best_tokens.data(), scores.data(), 4, logits.data(), c.vocab);
  launch("sample_score", {chunks, m}, BLOCK, 0, scored.data(), parts.data(), scores.data(), tokens.data(),
         best_logits.data(), best_tokens.data(), logits.data(), c.vocab);
  launch("sample_merge", {m}, BLOCK, 0, scored.data(), parts.data(), scores.data(), tokens.data(), best_logits.data(),
         best_tokens.data(), logits.data(), c.vocab, int(chunks));
  for (uint32_t i = 0; i < m; ++i) {
    const auto order = ranking(&logits[size_t(c.scores[i].row) * c.vocab], c.vocab);
    const uint32_t own = c.scores[i].token == NO_TOKEN ? tokens[c.scores[i].draw] : c.scores[i].token;
    size_t rank = 0;
    uint64_t total = 0;
    while (order[rank].token != own) ++rank;
    for (auto b : order) total += units(b.logit - order[0].logit);
    const Scored& s = scored[i];
    expect(s.token == own && s.logit == order[rank].logit && s.rank == rank + 1, "token, logit or rank of a score");
    expect(s.max == order[0].logit && s.total == total, "the largest logit or the total of a score");
    for (uint32_t j = 0; j < std::min(c.scores[i].top, uint32_t(c.vocab)); ++j)
      expect(s.top[j].token == order[j].token && s.top[j].logit == order[j].logit, "alternative " + std::to_string(j));
  }
  expect(scored.guards_whole() && tokens.guards_whole() && lists.guards_whole() && parts.guards_whole() &&
         tallies.guards_whole() && totals.guards_whole() && best_logits.guards_whole() && kept.guards_whole(),
         "written beyond a buffer");
}

static const int VOCABS[] = {1, 8, 777, 4096, 4097, 8192, 9000};

static void test_greedy_and_scores() {
  for (int vocab : VOCABS) {
    current_case = "greedy " + std::to_string(vocab);
    Case c(vocab, 4);
    for (int i = 0; i < vocab; ++i) c.logits[i] = -INFINITY, c.logits[vocab + i] = -2;  // nothing above; all alike
    c.logits[2 * vocab + vocab - 1] = c.logits[2 * vocab + vocab / 2] = 9;           // two alike
    c.logits[3 * vocab + vocab - 1] = INFINITY;
    for (uint32_t row = 0; row < 4; ++row) {
      c.add(plain(row));
      c.draws.back().temperature = row % 2 ? 0.f : 0.7f;
      c.scores.push_back({row, NO_TOKEN, row, uint32_t(between(0, MAX_TOP))});
      c.scores.push_back({row, uint32_t(between(0, vocab - 1)), 0, uint32_t(row == 2 ? MAX_TOP : 1)});
    }
    check(c);
  }
}

static void test_without_cut() {
  for (int vocab : VOCABS) {
    current_case = "without a cut " + std::to_string(vocab);
    Case c(vocab, 2);
    for (float temperature : {0.3f, 1.f, 30.f})
      for (float min_p : {0.f, 0.2f}) {
        c.add(plain(random_bits() % 2));
        c.draws.back().temperature = temperature;
        c.draws.back().min_p = min_p;
      }
    c.draws[0].at = 0;
    c.draws[1].at = WHOLE - 1;
    check(c);
  }
}

static void test_cuts() {
  for (int vocab : VOCABS)
    for (float step : {0.f, 1.f, 0.001f}) {
      current_case = "cuts " + std::to_string(vocab) + " in steps of " + std::to_string(step);
      Case c(vocab, 2);
      // Many equals, so that borders fall among them.
      if (step > 0) for (size_t i = 0; i < c.logits.size(); ++i) c.logits[i] = step * floorf(c.logits[i]);
      for (uint32_t top_k : {0u, 1u, 50u, 8500u})
        for (double top_p : {0.0, 0.3, 0.98, 1.0}) {
          c.add(plain(random_bits() % 2));
          c.draws.back().top_k = top_k;
          c.draws.back().top_p = uint64_t(top_p * WHOLE);
          c.draws.back().min_p = random_bits() % 3 ? 0.f : 0.05f;
          c.draws.back().temperature = uniform(0.2f, 3.f);
        }
      check(c);
    }
}

static void test_changes() {
  for (int vocab : {8, 777, 4097}) {
    current_case = "changes " + std::to_string(vocab);
    Case c(vocab, 3);
    for (uint32_t row = 0; row < 3; ++row) {
      Draw d = plain(row);
      d.repetition_penalty = uniform(0.5f, 2.f);
      d.frequency_penalty = uniform(-1.f, 1.f);
      d.presence_penalty = uniform(-1.f, 1.f);
      d.first_change = uint32_t(c.changes.size());
      d.num_changes = uint32_t(vocab - 1);
      for (int i = 0; i < vocab - 1; ++i)
        c.changes.push_back({uint32_t(vocab - 1 - i), random_bits() % 5 ? uint32_t(random_bits() % 4) : BANNED, uniform(-3.f, 3.f)});
      if (row == 2) d.temperature = 0;
      c.add(d);
      d.num_changes = 0;  // a second choice of the row
      d.top_k = 5;
      c.add(d);
      c.scores.push_back({row, NO_TOKEN, row, 2});
    }
    check(c);
  }
}

static void test_not_a_number() {
  for (int vocab : {8, 5001}) {
    current_case = "not a number " + std::to_string(vocab);
    Case c(vocab, 1);
    c.logits[vocab - 2] = NAN;
    const uint32_t chunks = c.chunks();
    Draw d = plain(0);
    d.num_changes = 1;
    const auto draws = buffer_of<Draw>({d});
    const auto changes = buffer_of<Change>({{uint32_t(vocab - 2), BANNED, 0}});
    const auto scores = buffer_of<Score>({{0, 3, 0, 2}});
    Buffer<float> kept(1), best_logits(chunks);
    Buffer<uint32_t> best_tokens(chunks), tokens(1);
    Buffer<Scored> scored(1);
    launch("sample_change", {1, 1}, BLOCK, 0, c.logits.data(), kept.data(), draws.data(), changes.data(), vocab, 0);
    launch("sample_best", {chunks, 1}, BLOCK, 0, best_logits.data(), best_tokens.data(), draws.data(), 14, c.logits.data(), vocab);
    uint32_t* const none = nullptr;
    launch("sample_draw", {1}, BLOCK, 0, tokens.data(), none, none, none, draws.data(), best_logits.data(),
           best_tokens.data(), c.logits.data(), vocab, int(chunks));
    launch("sample_merge", {1}, BLOCK, 0, scored.data(), none, scores.data(), tokens.data(), best_logits.data(),
           best_tokens.data(), c.logits.data(), vocab, int(chunks));
    expect(tokens[0] == NO_TOKEN && std::isnan(scored[0].max), "a logit that is not a number is passed over");
  }
}

static void all() {
  test_greedy_and_scores();
  test_without_cut();
  test_cuts();
  test_changes();
  test_not_a_number();
}
int main(int argc, char** argv) { return run(argc, argv, all); }
