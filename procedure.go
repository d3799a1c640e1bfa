package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency/internal/kept"
)

// The errors of a [Procedure], beside those of [Do].
var (
	// ErrUnfinished: the key belongs to a [Procedure] that has begun and has not ended.
	// Do, DoTx, QueryRow, Query, Get and Delete return it for such a key. Nothing was
	// executed. The procedure goes on when its Do is called again, or by
	// [Store.Complete].
	ErrUnfinished = errors.New("idempotency: the key belongs to a procedure that has not ended: call the procedure again, or Store.Complete, to go on with it, or Store.Discard to give it up")

	// ErrStepsChanged: the procedure's code does not ask for the steps and calls that
	// were recorded, in their order. Nothing was executed. The operation goes on with
	// code that asks for them; to append new ones is allowed.
	ErrStepsChanged = errors.New("idempotency: the procedure's steps are not those that were recorded")

	// ErrCallExpired: a [Call] was begun longer ago than its window, and its outcome is
	// not known. The call was not made again, because the other side may have forgotten
	// the key. Find out there what became of it, and enter that by [Store.Settle].
	ErrCallExpired = errors.New("idempotency: the outcome of a call is unknown, and it is too old to be made again with the same key: look at the other side, and use Store.Settle")
)

// A Procedure is an operation of several steps, some of which ask somebody else than this
// database to do something: to charge a card, to send a mail. Declare it once, as a
// variable of the package, so that [Store.Complete] can go on with what a client has
// abandoned.
//
//	var createRide = idempotency.Procedure[Request, Receipt]{
//		Name: "create ride",
//		Run: func(ctx context.Context, op *idempotency.Op, in Request) (Receipt, error) {
//			ride, err := idempotency.Step(ctx, op, "create", func(ctx context.Context, tx pgx.Tx) (int, error) {
//				return insertRide(ctx, tx, in)
//			})
//			if err != nil {
//				return Receipt{}, err
//			}
//			charge, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (Charge, error) {
//				return provider.Charge(ctx, key, in.Card, in.Amount)
//			})
//			if err != nil {
//				return Receipt{}, err
//			}
//			return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (Receipt, error) {
//				return confirmRide(ctx, tx, ride, charge)
//			})
//		},
//	}
//
//	receipt, replayed, err := createRide.Do(ctx, store, key, request)
type Procedure[In, Out any] struct {
	// Name of the procedure, which is kept with each operation that has not ended. A
	// name belongs to one procedure: 1 to 255 bytes of UTF-8 without NUL.
	Name string

	// Run asks for its steps, by [Step] and [Call], and returns the result. Each attempt
	// runs it from its start. A step or call that is recorded does not run again: it
	// returns its result at once. So Run must have no effects outside of its steps and
	// calls, and must read no clock, random numbers or database. It asks for the same
	// steps each time, and each has a name of its own.
	Run func(ctx context.Context, op *Op, in In) (Out, error)
}

// Do runs the procedure to its end, once per key within the retention, and returns its
// result; every later call with the key returns the recorded one. An operation that was
// begun before, and has not ended, goes on after the last step that is recorded, with the
// input of the call that began it. In and Out are stored as JSON, with the rules and the
// errors of the function [Do].
//
// The input, and the results of the steps, are kept as plain text for as long as the
// operation has not ended, however long that takes: they are not purged.
//
// What it does, by what happens:
//   - Run returns a nil error: its result is recorded, in the same transaction as the
//     last step.
//   - Run, or a function of a step, returns an error or panics: the steps and calls that
//     have returned stay done, nothing else does, and the error comes back. The operation
//     has not ended. The next Do, or [Store.Complete], runs Run again.
//   - the process dies or freezes, or the connection is lost: the same. The key is free
//     as soon as PostgreSQL notices, after [Config.MaxIdle] at the latest. A process that
//     goes on after that commits nothing and begins no call.
//   - a serialization failure, a deadlock, a lost connection: Run is run again, 10 times
//     at most.
//   - a duplicate runs at the same time, in any process: it waits, as for the function Do.
//   - the answer to a COMMIT is lost: Do finds out what became of it, as the function Do,
//     and goes on. It is [ErrOutcomeUnknown] when it cannot find out within 30 seconds.
//
// See also [ErrStepsChanged] and [ErrCallExpired].
func (p Procedure[In, Out]) Do(ctx context.Context, s *Store, key Key, in In) (out Out, replayed bool, err error) {
	input, err := encode(&in, new(In), s.cfg.MaxResult, unstorable)
	if err != nil {
		return out, false, fmt.Errorf("idempotency: the input of procedure %q: %w", p.Name, err)
	}
	return p.call(ctx, s, key, &course{name: p.Name, input: input})
}

func (p Procedure[In, Out]) call(ctx context.Context, s *Store, key Key, w *course) (out Out, replayed bool, err error) {
	if err := validateName(p.Name); err != nil {
		return out, false, fmt.Errorf("idempotency: Procedure.Name: %w", err)
	}
	w.run = func(ctx context.Context, op *Op, input []byte) ([]byte, error) {
		var in In
		if err := json.Unmarshal(input, &in); err != nil {
			return nil, fmt.Errorf("%w: the operation's input, which is of an earlier call, as %T: %w", ErrUndecodable, in, kept.Advised(err))
		}
		value, err := p.Run(ctx, op, in)
		if err != nil {
			return nil, err
		}
		stored, err := encode(&value, &out, s.cfg.MaxResult, unstorable)
		if err != nil {
			return nil, fmt.Errorf("idempotency: the result of procedure %q: %w", p.Name, err)
		}
		return stored, nil
	}
	w.replay = func(stored []byte) error { return replayInto(stored, &out) }
	replayed, err = s.call(ctx, "Procedure", nil, key, w)
	return valuesOf(out, replayed, err)
}

// A course is the work of a procedure.
type course struct {
	name   string
	input  []byte // of this call
	number string // of the operation that Complete goes on with: that one, or none
	ran    bool   // the function has been run
	run    func(ctx context.Context, op *Op, input []byte) ([]byte, error)
	replay func(stored []byte) error
}

func (w *course) decode(stored []byte) error { return w.replay(stored) }

// An Op is one run of a procedure's function. It is of no use when that has returned.
type Op struct {
	*progress
	window time.Duration // 0: Config.CallWindow
}

// Within returns op with another window for the calls that are made with it than
// [Config.CallWindow]: some providers forget a key after half an hour. A negative window
// makes the calls fail; 0 is Config.CallWindow.
func (op *Op) Within(window time.Duration) *Op { return &Op{progress: op.progress, window: window} }

// Step runs fn in a transaction, and records its value with its effects. Both are durable
// when the next step begins, or the procedure ends. The first step shares its transaction
// with the key's claim, and the last one with the procedure's result.
//
// The rules are those of the function of [Do]: fn can run more than once, and only the
// effects of the run whose value is recorded remain. The transaction has
// [Config.TxOptions]. Where fn sends COMMIT as SQL, the operation is [ErrAbandoned].
//
// After an error of a step, each later one of the same run fails with that error, so that
// Run cannot take another way because of it. Return an outcome to act on as a value.
//
// Steps and calls have names that differ, of 1 to 255 bytes of UTF-8 without NUL. They
// are not nested and not parallel.
func Step[T any](ctx context.Context, op *Op, name string, fn func(ctx context.Context, tx pgx.Tx) (T, error)) (value T, err error) {
	v := stepValue[T]{op: op.progress, what: "step", name: name}
	err = op.step(ctx, name, func(ctx context.Context, tx pgx.Tx) ([]byte, error) {
		return v.stored(fn(ctx, tx))
	}, v.recorded)
	return v.returned(err)
}

// Call runs fn, outside of any transaction, to ask somebody else to do something. Key is a
// UUID for this call of this operation. It is the same in each attempt, whatever has
// happened before, also after a failover that has lost the operation: fn sends it as the
// idempotency key, so that the other side does the thing once. It is made of [Key.Scope],
// [Key.ID], the name and [Config.CallNamespace], and of nothing that is stored.
//
// PostgreSQL knows that the call begins before fn runs, and fn's value before the next
// step begins. A call whose value is recorded is never made again. One that was begun,
// and whose outcome is not known, is made again with the same key within the window,
// which is [Config.CallWindow] or that of [Op.Within], and after that it is
// [ErrCallExpired].
//
// The context of fn has the values and the deadline of ctx, and is not cancelled with it:
// a client that goes away does not interrupt a call under way. It ends, at the latest,
// before PostgreSQL ends the transaction that holds the key, which is when 9 tenths of
// [Config.MaxIdle] are over. So a call that can take longer needs a longer MaxIdle. While
// fn runs, the operation holds a connection with an idle transaction, without a
// transaction id and without a snapshot; at most half of the pool's connections are used
// so (see [Config.CallPool]).
//
// Two processes can be in one call at a time only if one of them is frozen in it, or fn
// goes on after its context has ended, or the connection was lost meanwhile. The other
// side then sees the same key twice.
//
// A procedure inside a step or a call of another one needs a place of its own among the
// calls under way, and a connection: where all are taken, it waits for them.
//
// After an error of fn the outcome of the call counts as unknown, even if fn knows it.
// Return what is to be recorded, such as a declined card, as a value.
func Call[T any](ctx context.Context, op *Op, name string, fn func(ctx context.Context, key string) (T, error)) (value T, err error) {
	v := stepValue[T]{op: op.progress, what: "call", name: name}
	err = op.call(ctx, name, op.window, func(ctx context.Context, key string) ([]byte, error) {
		return v.stored(fn(ctx, key))
	}, v.recorded)
	return v.returned(err)
}

// A stepValue is what a step or a call returns, as decoded from what is stored.
type stepValue[T any] struct {
	op         *progress
	what, name string
	value      T
}

func (v *stepValue[T]) stored(value T, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	stored, err := encode(&value, &v.value, v.op.c.store.cfg.MaxResult, unstorable)
	if err != nil {
		return nil, fmt.Errorf("idempotency: the value of %s %q cannot be recorded: %w", v.what, v.name, err)
	}
	return stored, nil
}

func (v *stepValue[T]) recorded(stored []byte) error {
	if err := decodeInto(stored, &v.value); err != nil {
		return fmt.Errorf("%w: the recorded value of %s %q as %T: %w", ErrUndecodable, v.what, v.name, v.value, kept.Advised(err))
	}
	return nil
}

func (v *stepValue[T]) returned(err error) (T, error) {
	value, _, err := valuesOf(v.value, false, err)
	return value, err
}

func validateName(name string) error {
	if problem := problemOf(name); problem != "" {
		return errors.New("the name " + problem)
	}
	return nil
}
