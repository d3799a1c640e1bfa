package idemtest

import (
	"fmt"
	"reflect"
	"strings"
)

// problems compares what a round has found with what it should have.
func (r *round) problems() (all []problem) {
	for _, check := range []func() (problem, bool){
		r.checkReturned, r.checkConnections, r.checkTransactions, r.checkErrors,
		r.checkCut, r.checkEffects, r.checkKeys, r.checkAnswers, r.checkReplays,
	} {
		if p, wrong := check(); wrong {
			all = append(all, p)
		}
	}
	return all
}

// counted: effects and keys are known.
func (r *round) counted() bool { return r.missing == 0 && r.acquired <= 0 }

func (r *round) checkReturned() (problem, bool) {
	return problem{
		what:     "calls do not return",
		expected: fmt.Sprintf("every call to return when its context ends, after %v", r.Timeout),
		found:    fmt.Sprintf("%s did not, %v later", plural(r.missing, "call"), grace),
		likely:   "the pool is used up: something acquires a second connection inside a transaction, or does not release one; or the program does not pass the context on",
	}, r.missing > 0
}

func (r *round) checkConnections() (problem, bool) {
	return problem{
		what:     "connections leaked",
		expected: "every connection released when the calls have returned",
		found:    plural(r.acquired, "connection") + " of the pool still acquired",
		likely:   "a pool.Acquire without Release, rows without Close, a QueryRow without Scan, or a pool.Begin without Commit or Rollback on each way out (use pgx.BeginFunc). The effects were not counted",
	}, r.acquired > 0 && r.missing == 0
}

func (r *round) checkTransactions() (problem, bool) {
	return problem{
		what:     "transactions left open",
		expected: "no session in a transaction when the calls have returned",
		found:    strings.Join(r.open, "\n"),
		likely:   "a Begin, or the statement begin, without Commit or Rollback on each way out (use pgx.BeginFunc)",
	}, len(r.open) > 0 && r.missing == 0
}

func (r *round) checkErrors() (problem, bool) {
	var failures []any
	for _, a := range r.answers {
		if a.err != nil {
			failures = append(failures, a.err.Error())
		}
	}
	p := problem{
		what:     "calls failed",
		expected: "every call to return the result",
		found:    tally(failures),
		likely:   "what the error says",
	}
	if r.cut != "" {
		p.expected += fmt.Sprintf(", the one that was disturbed when it is called again, %d times at most", r.maxCalls()-1)
	}
	switch text := p.found; {
	case strings.Contains(text, "key was used for another request"):
		p.likely = "the Fingerprint covers something that differs between duplicates, such as a time, a request id or an unordered map"
	case strings.Contains(text, "a call with this key is in progress"):
		p.likely = "the function takes longer than Config.Wait, or its transaction is not ended; with a negative Wait, make the Call ask again"
	case strings.Contains(text, "result cannot be stored and read back"):
		p.likely = "the function returns a value of which JSON loses a part: give the field that the error names another type, or methods for JSON"
	case strings.Contains(text, "refused by Guard"):
		p.likely = "the other report, on the line of the statement"
	case strings.Contains(text, "steps are not those that were recorded"):
		p.likely = "Run asks for other steps in a later attempt, since it depends on something that is not recorded, such as a time, a random number or what it reads from the database: read that in a step"
	case strings.Contains(text, "23505"):
		p.likely = "the duplicates do not get to the same key, or the effect is made outside the function of Do: a unique constraint of yours has stopped the second effect, but the client gets an error instead of the result"
	}
	return p, len(failures) > 0
}

func (r *round) checkCut() (problem, bool) {
	return problem{
		what:     "no COMMIT to cut",
		expected: "a COMMIT through the pool that Start was given",
		found:    "none, so no connection was cut",
		likely:   "the program uses another pool than the one that Start gives it, or writes without a transaction",
	}, r.cut != "" && r.at == 1 && !r.wasCut.Load() && r.missing == 0
}

func (r *round) checkEffects() (problem, bool) {
	p := problem{
		what:     "wrong number of effects",
		expected: "1 effect",
		found:    fmt.Sprintf("%s, and %s in the table of the Store", plural(r.effects, "effect"), plural(r.keys, "key")),
	}
	switch {
	case r.effects < 0:
		p.likely = "Program.Effects counts what others change meanwhile: count by the id"
	case r.effects == 0 && r.failed():
		p.likely = "the calls failed, see above"
	case r.effects == 0 && r.cut != "":
		p.likely = "an error of COMMIT is ignored, so that success is answered though nothing was committed; or Program.Effects counts something else"
	case r.effects == 0:
		p.likely = "Program.Effects counts something else than the program writes, or the function ends without its effect, and its nil error is recorded\nthe answers: " + tally(r.values())
	case r.keys == 0:
		p.likely = "the program does not call Do or DoTx; or its Store is not on the pool that Start gives it, or has a Schema of its own"
	case r.keys > r.maxKeys():
		p.likely = "the duplicates do not have the same key: something in Key.Scope or Key.ID differs from call to call, such as a time or a random id"
	case r.cut != "":
		p.likely = "the effect and the key do not commit together: the effect is written in a transaction of its own (or through the pool) and the key in another, and the connection was lost in between"
	default:
		p.likely = "the effect is not made in the transaction of the function: it is written before or after Do, in a transaction of its own or through the pool, and the key is recorded in another one"
	}
	return p, r.counted() && r.effects != 1
}

func (r *round) checkKeys() (problem, bool) {
	p := problem{
		what:     "wrong number of keys",
		expected: plural(r.maxKeys(), "key") + " in the table of the Store",
		found:    plural(r.keys, "key"),
		likely:   "the duplicates do not have the same key: something in Key.Scope or Key.ID differs from call to call, such as a time or a random id",
	}
	if r.maxKeys() > 1 {
		p.expected = fmt.Sprintf("1 to %d keys in the table of the Store, as one call alone leaves %d", r.maxKeys(), r.maxKeys())
	}
	if r.keys == 0 {
		p.likely = "the program does not call Do or DoTx; or its Store is not on the pool that Start gives it, or has a Schema of its own; or the transaction of DoTx was not committed"
	}
	return p, r.counted() && r.effects == 1 && (r.keys < 1 || r.keys > r.maxKeys())
}

func (r *round) checkAnswers() (problem, bool) {
	values := r.values()
	different := false
	for _, v := range values {
		different = different || !reflect.DeepEqual(v, values[0])
	}
	p := problem{
		what:     "different answers",
		expected: "the same answer to every call",
		found:    tally(values),
		likely:   "a part of the answer is made outside the function of Do, such as a time, an id or a \"duplicate\" message: build all of it from the value that Do returns",
	}
	if r.counted() && r.effects != 1 {
		p.likely = "the wrong number of effects, see above"
	}
	return p, different
}

func (r *round) checkReplays() (problem, bool) {
	first := 0
	for _, a := range r.answers {
		if a.err == nil && !a.replayed {
			first++
		}
	}
	p := problem{
		what:     "wrong number of first answers",
		expected: "1 answer that is not a replay",
		found:    fmt.Sprintf("%d of %d", first, len(r.values())),
		likely:   "the replayed that Do returns is not passed on; if the answers do not say it, set Program.Unmarked",
	}
	right := first == 1
	if r.cut != "" { // a call that found out about its COMMIT, or was made again, has a replay
		p.expected, right = "at most "+p.expected, first <= 1
		p.likely = "an error of COMMIT is ignored: a call has answered with success though nothing was committed, and the next one ran again"
	}
	return p, !r.Unmarked && !r.failed() && r.counted() && r.effects == 1 && !right
}

func (r *round) failed() bool { return len(r.values()) < len(r.answers) }

// values are the answers of the calls that succeeded.
func (r *round) values() (values []any) {
	for _, a := range r.answers {
		if a.err == nil {
			values = append(values, a.value)
		}
	}
	return values
}
