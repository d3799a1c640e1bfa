package idemtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// A usage is what the requests of one round have done at the provider, by the call that
// they belong to.
type usage struct {
	requests, effects map[string]int
	keys              map[string][]string // that differ, in the order of their arrival
}

func (c *scene) usage() usage {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := usage{requests: make(map[string]int), effects: make(map[string]int), keys: make(map[string][]string)}
	for _, q := range c.requests {
		call := q.begun
		u.requests[call]++
		if q.effect {
			u.effects[call]++
		}
		if q.key != "" && !slices.Contains(u.keys[call], q.key) {
			u.keys[call] = append(u.keys[call], q.key)
		}
	}
	return u
}

// seen are the requests of the round.
func (c *scene) seen() []request {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// problems compares what the round has found with what it should have.
func (r *procedureRound) problems() (all []problem) {
	for _, check := range []func() (problem, bool){
		r.checkReturned, r.checkConnections, r.checkTransactions,
		r.checkRequestsOutside, r.checkReached, r.checkKeyless, r.checkOtherKeys, r.checkSharedKeys, r.checkOtherRequests, r.checkMade,
		r.checkStepsOutside, r.checkErrors, r.checkAnswered, r.checkResult, r.checkUndisturbed, r.checkRows, r.checkKeys, r.checkAnswers, r.checkReplays,
	} {
		if p, wrong := check(); wrong {
			all = append(all, p)
		}
	}
	return all
}

// checkRequestsOutside looks at the first request that was not sent by a call.
func (r *procedureRound) checkRequestsOutside() (problem, bool) {
	requests := r.scene.seen()
	at := slices.IndexFunc(requests, func(q request) bool { return q.kind == inStep || q.kind == between })
	if at < 0 {
		return problem{}, false
	}
	q := requests[at]
	part := quoted(q.label(r.s.labels))
	p := problem{
		what:     part + " had an effect outside of the database",
		expected: "requests to the provider by the function of a Call, with the key that it is given",
		found:    fmt.Sprintf("%s in %s, at %s", q.what, part, q.line),
		likely:   "the request is sent in a Step: when the step's transaction is rolled back and the step runs again, the request is sent again. Send it in a Call",
	}
	if q.kind == between {
		p.what = "an effect outside of the steps and calls"
		p.found = fmt.Sprintf("%s beside %s, at %s", q.what, part, q.line)
		p.likely = "Run sends the request between its steps: each attempt runs it from its beginning, and sends the request again. Send it in a Call"
	}
	before := requests[:at]
	made := slices.IndexFunc(before, func(b request) bool { return b.kind == inCall && b.key == q.key && b.begun != "" && q.key != "" })
	if made >= 0 {
		p.what = quoted(before[made].begun) + " was made again although its result was recorded"
		p.likely = "the key of the call is used outside of its function: use what Call has returned"
	}
	return p, true
}

func (r *procedureRound) checkReached() (problem, bool) {
	return problem{
		what:     "no request to the provider",
		expected: "a request of " + quoted(r.firstCall()),
		found:    "none",
		likely:   "the calls use another address than the one that ProcedureProgram.Start is given",
	}, r.firstCall() != "" && len(r.scene.seen()) == 0 && !r.failed()
}

func (r *procedureRound) firstCall() string {
	for _, label := range r.s.labels {
		if isCall(label) {
			return label
		}
	}
	return ""
}

func (r *procedureRound) checkKeyless() (problem, bool) {
	for _, q := range r.scene.seen() {
		if q.key == "" && (q.kind == inCall || q.kind == "") {
			return problem{
				what:     quoted(q.begun) + " reached the provider without a key",
				expected: "an idempotency key in each request of a call",
				found:    fmt.Sprintf("none in %s, at %s", q.what, q.line),
				likely:   "the function of the call ignores the key that it is given, so that the provider cannot tell a second attempt from a second operation; or the key is elsewhere than in the header field Idempotency-Key: see ProcedureProgram.KeyOf",
			}, true
		}
	}
	return problem{}, false
}

func (r *procedureRound) checkOtherKeys() (problem, bool) {
	keys := r.scene.usage().keys
	for _, call := range r.s.labels {
		if alone := len(r.s.alone.keys[call]); len(keys[call]) > max(alone, 1) {
			return problem{
				what:     quoted(call) + " reached the provider with another key in a later attempt",
				expected: plural(max(alone, 1), "key") + ", the same in each attempt",
				found:    strings.Join(keys[call], "\n"),
				likely:   "the function of the call makes a key of its own, from what differs from attempt to attempt, such as a random number or the time: send the key that it is given",
			}, true
		}
	}
	return problem{}, false
}

// checkSharedKeys: the provider takes the second call for the first one.
func (r *procedureRound) checkSharedKeys() (problem, bool) {
	callOf := make(map[string]string)
	for _, q := range r.scene.seen() {
		if q.kind != inCall || q.key == "" || q.begun == "" { // another attempt can have recorded it meanwhile
			continue
		}
		if first, known := callOf[q.key]; known && first != q.begun {
			return problem{
				what:     fmt.Sprintf("%s and %s reached the provider with the same key", quoted(first), quoted(q.begun)),
				expected: "a key of its own for each call",
				found:    q.key,
				likely:   "the functions use a key of their own, or that of another call: send the key that each is given",
			}, true
		}
		callOf[q.key] = q.begun
	}
	return problem{}, false
}

func (r *procedureRound) checkOtherRequests() (problem, bool) {
	for _, q := range r.scene.seen() {
		if q.status == http.StatusUnprocessableEntity {
			return problem{
				what:     quoted(q.begun) + " sent another request with the same key",
				expected: "the same method, path and body with a key in each attempt",
				found:    fmt.Sprintf("two that differ, the second a %s at %s; the provider has refused it with 422", q.what, q.line),
				likely:   "the request has something in it that differs from attempt to attempt, such as a time or a random number: send only what depends on the input and on recorded values",
			}, true
		}
	}
	return problem{}, false
}

// checkMade compares with what one attempt has left alone.
func (r *procedureRound) checkMade() (problem, bool) {
	effects := r.scene.usage().effects
	for _, call := range r.s.labels {
		if alone := r.s.alone.effects[call]; effects[call] != alone {
			return problem{
				what:     "wrong number of effects at the provider",
				expected: fmt.Sprintf("%s of %s, as one attempt alone has", plural(alone, "effect"), quoted(call)),
				found:    plural(effects[call], "effect"),
				likely:   "a second attempt was a second operation for the provider, since it came without the key of the first or with another one: see above",
			}, !r.failed()
		}
	}
	return problem{}, false
}

// checkStepsOutside looks at the effects that were there before the COMMIT of the step, in
// the first attempt of all.
func (r *procedureRound) checkStepsOutside() (problem, bool) {
	r.scene.mu.Lock()
	defer r.scene.mu.Unlock()
	for i := 2; i < len(r.counts); i += 2 {
		before, sent := r.counts[i-2], r.counts[i-1]
		step := i/2 - 1 - r.s.commitsBefore()
		if sent == before || step < 0 || step >= len(r.s.labels) || isCall(r.s.labels[step]) {
			continue
		}
		label := quoted(r.s.labels[step])
		return problem{
			what:     label + " had an effect outside of its transaction",
			expected: fmt.Sprintf("no effect of %s before its transaction is committed", label),
			found:    fmt.Sprintf("Effects has counted %d before the COMMIT, and %d before the step", sent, before),
			likely:   fmt.Sprintf("%s, or what stands between it and the next one, has an effect that is not made through tx: it stays when the step is rolled back, and happens again in the next attempt", label),
		}, true
	}
	return problem{}, false
}

// checkAnswered looks for a call that was carried out, and recorded by somebody to whom the
// provider has not said so.
func (r *procedureRound) checkAnswered() (problem, bool) {
	carriedOut := r.scene.usage().effects
	for _, call := range r.s.labels {
		var answers []any
		answered := false
		for _, q := range r.scene.seen() {
			if q.begun != call {
				continue
			}
			switch q.status {
			case 0:
				answers = append(answers, "none: the connection was lost")
			case http.StatusConflict, http.StatusUnprocessableEntity:
				answers = append(answers, fmt.Sprint(q.status))
			default:
				answered = true
			}
		}
		if carriedOut[call] > 0 && !answered {
			return problem{
				what:     quoted(call) + " was recorded without the answer of the provider",
				expected: "an error of the call's function, and then another request with the same key",
				found:    "the answers " + tally(answers),
				likely:   "the function takes an error of the connection, or a status such as 409, for a refusal, and returns it as a value. The provider has carried the request out: return an error, unless it says that the request has ended",
			}, !r.failed()
		}
	}
	return problem{}, false
}

// leaves are the values of a result as JSON, by their paths.
type leaves map[string]string

func leavesOf(value any) leaves {
	text, err := json.Marshal(value)
	var decoded any
	if err == nil {
		err = json.Unmarshal(text, &decoded)
	}
	all := make(leaves)
	if err == nil { // else it was not recorded either
		all.add("", decoded)
	}
	return all
}

func (l leaves) add(path string, value any) {
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			l.add(path+"."+name, member)
		}
	case []any:
		for i, element := range v {
			l.add(fmt.Sprintf("%s[%d]", path, i), element)
		}
	default:
		l[path] = fmt.Sprint(v)
	}
}

// checkUndisturbed compares with what two undisturbed rounds have in common.
func (r *procedureRound) checkUndisturbed() (problem, bool) {
	values := r.values()
	if len(values) == 0 || r.failed() || len(r.s.undisturbed) < 2 {
		return problem{}, false
	}
	got := leavesOf(values[0])
	first, second := r.s.undisturbed[0], r.s.undisturbed[1]
	for _, path := range slices.Sorted(maps.Keys(first)) {
		want := first[path]
		if other, there := second[path]; !there || other != want || got[path] == want {
			continue
		}
		return problem{
			what:     "another result than that of an operation that nothing has disturbed",
			expected: fmt.Sprintf("%s = %s, as in two others", strings.TrimPrefix(path, "."), show(want)),
			found:    show(got[path]),
			likely:   fmt.Sprintf("a later attempt does not have what an earlier one had, such as a variable that the function of a step or a call has set: return it as the value of that step or call%s", endedAt(r.fault)),
		}, true
	}
	return problem{}, false
}

func endedAt(f fault) string {
	if f.label == "" {
		return "" // another attempt has gone on all the same
	}
	return ". The attempt was ended at " + quoted(f.label)
}

// checkResult compares the results of the first attempt, which was made to stop, and of the
// second one, for which all steps and calls were recorded.
func (r *procedureRound) checkResult() (problem, bool) {
	if !r.alone || r.failed() || len(r.answers) == 0 {
		return problem{}, false
	}
	first, errFirst := json.Marshal(r.scene.stopped)
	second, errSecond := json.Marshal(r.answers[0].value)
	return problem{
		what:     "another result in a later attempt",
		expected: show(string(first)) + ", as in the first attempt, since all steps and calls were recorded",
		found:    show(string(second)),
		likely:   "a part of the result is not made of recorded values: Run reads a clock or a random number, or uses a variable that the function of a step or a call has set: return it as the value of the step or the call",
	}, errFirst == nil && errSecond == nil && !bytes.Equal(first, second)
}

func (r *procedureRound) checkRows() (problem, bool) {
	p := problem{
		what:     "wrong number of effects",
		expected: "1 effect, counted by ProcedureProgram.Effects",
		found:    plural(r.effects, "effect"),
	}
	switch {
	case r.effects < 0:
		p.likely = "ProcedureProgram.Effects counts what others change meanwhile: count by the id"
	case r.failed():
		p.likely = "the calls failed, see above"
	case r.effects == 0 && r.fault.label != "":
		p.likely = fmt.Sprintf("what was rolled back was not done again: the function of a step remembers outside of the database what it has done, or a later one uses a value that is not recorded. The attempt was ended at %s", quoted(r.fault.label))
	case r.effects == 0:
		p.likely = "ProcedureProgram.Effects counts something else than the procedure writes"
	case r.alone:
		p.likely = "Run has an effect between its steps, which each attempt repeats, or one operation has more than one effect: count what it has once"
	default:
		p.likely = fmt.Sprintf("an effect is not in the transaction of a step, and was repeated by the attempt after the one that was ended. That was at %s: look there first", quoted(r.fault.label))
	}
	return p, r.counted() && r.effects != 1
}
