package idemhttp

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/internal/transport"
)

// Procedure executes a procedure, once per key, for requests that have its input. What is
// recorded is the procedure's result, and no response: the first answer and each replay
// are rendered from it, and a replay has "Idempotent-Replayed: true". So
// [idempotency.Store.Complete] can end, without a request, what a client has abandoned.
//
// Decode makes the input of the request, before the key is claimed, and of each retry too:
// it is the place to check who sends the request, and what. Where it returns false, it has
// answered, and nothing was executed. A retry of an operation that has begun goes on with
// the input of the first request.
//
// Render answers. Nothing of what it does is recorded, and it has no transaction. What the
// other side has refused is a value of the procedure, and so is for render to tell.
//
// By the outcome:
//   - the procedure ends: its result is recorded, and then rendered.
//   - it stops before its end, by an error or because the client disconnects, and some of
//     it is recorded: 503 with Retry-After. The next request with the key goes on. With
//     [Config.FinishDisconnected], a client that disconnects stops nothing that has begun.
//   - it stops and nothing is recorded: 500, or 503 for what passes, such as a conflict.
//   - a person has to look: the outcome of a call is not known and too old to ask again
//     ([idempotency.ErrCallExpired]), or the code has other steps than the operation has
//     begun with ([idempotency.ErrStepsChanged]): 500, without Retry-After. The next
//     request with the key goes on once that is settled.
//   - it panics: the panic goes on to the server, and what was recorded stays.
//   - the process dies: the same.
//
// Other methods than [Config.Methods] are 405. Of the Config, MaxRecord, Record,
// KeepHeaders and DropHeaders mean nothing here.
func Procedure[In, Out any](m *Middleware, p idempotency.Procedure[In, Out],
	decode func(http.ResponseWriter, *http.Request) (In, bool),
	render func(http.ResponseWriter, *http.Request, Out),
) http.Handler {
	return m.always(func(w http.ResponseWriter, r *http.Request) {
		if transport.RunOf(r.Context()) != nil {
			m.refuse(w, r, *failed.causedBy(errProcedureInside))
			return
		}
		m.exchange(w, r, func(x *exchange, key idempotency.Key) {
			x.ran = x.request(r.Context())
			in, ok := decode(w, x.ran)
			if !ok {
				return
			}
			ctx, done := x.context()
			defer done()
			out, replayed, err := proceed(ctx, x, p, key, in)
			if err != nil {
				m.refuse(w, r, *x.problemOfProcedure(key, err).causedBy(err))
				return
			}
			if replayed {
				w.Header().Set(replayedHeader, "true")
			}
			render(w, x.request(r.Context()), out)
		})
	})
}

var errProcedureInside = errors.New("idemhttp: a Procedure cannot be inside of another Middleware: its steps have transactions of their own")

// proceed calls the procedure. Where the key belongs to a request with another
// fingerprint, that can be this one, with another key of Config.FingerprintKeys.
func proceed[In, Out any](ctx context.Context, x *exchange, p idempotency.Procedure[In, Out], key idempotency.Key, in In) (out Out, replayed bool, err error) {
	run := p.Run
	p.Run = func(ctx context.Context, op *idempotency.Op, in In) (Out, error) {
		x.detach()
		return run(ctx, op, in)
	}
	out, replayed, reused := p.Do(ctx, x.m.store, key, in)
	if !errors.Is(reused, idempotency.ErrKeyReused) {
		return out, replayed, reused
	}
	asked := key.Fingerprint
	for _, key.Fingerprint = range x.keyedFingerprints() {
		if key.Fingerprint == asked {
			continue
		}
		out, replayed, err = p.Do(ctx, x.m.store, key, in)
		if !errors.Is(err, idempotency.ErrKeyReused) {
			return out, replayed, err
		}
	}
	return out, false, reused
}

// lookBound is how long the answer to a request that has failed may wait for what is
// recorded of it.
const lookBound = 5 * time.Second

// problemOfProcedure is of an operation of which something may be recorded.
func (x *exchange) problemOfProcedure(key idempotency.Key, err error) *Problem {
	switch {
	case errors.Is(err, idempotency.ErrCallExpired):
		return stuck.because("A request to another service has begun, and it is not known what became of it. Sending this request again does not help before somebody has looked. %s", newKeyTwice)
	case errors.Is(err, idempotency.ErrStepsChanged):
		return stuck.because("The service has changed since this request has begun, and cannot go on with it. Nothing was executed now. %s", newKeyTwice)
	}
	outcome := transport.OutcomeOf(key, err, true)
	if outcome != transport.Unavailable && outcome != transport.Failed {
		return problemOf(outcome)
	}
	// That the request's context has ended can be why the procedure has stopped.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), lookBound)
	defer cancel()
	_, look := x.m.store.Get(ctx, key)
	switch {
	case errors.Is(look, idempotency.ErrUnfinished):
		return &unfinished
	case !errors.Is(look, idempotency.ErrNotFound): // ended by somebody else, or not readable
		return &outcomeUnknown
	}
	return problemOf(outcome)
}
