package idemtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemtest"
	"github.com/pgidem/idempotency/internal/pgtest"
)

type order struct{ ID string }

type receipt struct {
	N      int
	Charge string
}

// A status is what the provider has answered, where that was not 200. To look for its number
// in the text of an error would find it in a port too.
type status int

func (s status) Error() string { return fmt.Sprintf("the provider answered %d", int(s)) }

// ask is a client of the provider.
func ask(ctx context.Context, method, url, key string, body any) (id string, err error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(encoded))
	if err != nil {
		return "", err
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", status(answer.StatusCode)
	}
	var made struct{ ID string }
	err = json.NewDecoder(answer.Body).Decode(&made)
	return made.ID, err
}

func pay(ctx context.Context, url, key string, in order) (id string, err error) {
	return ask(ctx, http.MethodPost, url+"/charges", key, in)
}

// A shop has a right procedure: it reserves in a step, charges in a call and confirms in a
// step. A test replaces one of them by a wrong one.
type shop struct {
	url     string
	pool    *pgxpool.Pool
	reserve func(ctx context.Context, tx pgx.Tx, in order) (int, error)
	charge  func(ctx context.Context, key string, in order) (string, error)
	between func(ctx context.Context, in order) error // behind the reservation
	confirm func(ctx context.Context, tx pgx.Tx, in order) error
}

func newShop(pool *pgxpool.Pool, url string) *shop {
	return &shop{
		url: url, pool: pool,
		reserve: func(ctx context.Context, tx pgx.Tx, in order) (int, error) { return charge(in.ID)(ctx, tx) },
		charge:  func(ctx context.Context, key string, in order) (string, error) { return pay(ctx, url, key, in) },
		between: func(context.Context, order) error { return nil },
		confirm: func(context.Context, pgx.Tx, order) error { return nil },
	}
}

func (s *shop) run(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
	n, err := idempotency.Step(ctx, op, "reserve", func(ctx context.Context, tx pgx.Tx) (int, error) { return s.reserve(ctx, tx, in) })
	if err != nil {
		return receipt{}, err
	}
	if err := s.between(ctx, in); err != nil {
		return receipt{}, err
	}
	id, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (string, error) { return s.charge(ctx, key, in) })
	if err != nil {
		return receipt{}, err
	}
	return idempotency.Step(ctx, op, "confirm", func(ctx context.Context, tx pgx.Tx) (receipt, error) {
		return receipt{n, id}, s.confirm(ctx, tx, in)
	})
}

type (
	orders = idemtest.ProcedureProgram[order, receipt]
	runs   = func(ctx context.Context, op *idempotency.Op, in order) (receipt, error)
)

// procedureOf is a program with another function than that of the shop.
func procedureOf(run func(*shop) runs) orders {
	return orders{
		Start: func(pool *pgxpool.Pool, url string) idempotency.Procedure[order, receipt] {
			return idempotency.Procedure[order, receipt]{Name: "order", Run: run(newShop(pool, url))}
		},
		Input:   func(id string) order { return order{id} },
		Effects: program(nil).Effects,
	}
}

// shopWith is the program of a shop that was changed.
func shopWith(change func(*shop)) orders {
	return procedureOf(func(s *shop) runs {
		change(s)
		return s.run
	})
}

// stormOrders runs a StormProcedure on a program and returns its report.
func stormOrders(t *testing.T, p orders, opts ...pgtest.Option) string {
	t.Helper()
	pool := testDatabase(t, opts...)
	report := record(t, func(t testing.TB) { idemtest.StormProcedure(t, pool, 4, p) })
	if n := schemas(t, pool); n != 0 {
		t.Errorf("%d schemas are left", n)
	}
	return report
}

func right(*shop) {}

func TestRightProcedurePassesTheStorm(t *testing.T) {
	t.Parallel()
	wantNone(t, stormOrders(t, shopWith(right)))
}

func TestRightProcedurePassesTheStormOnAPoolOfOneInTheSimpleProtocolAndWithoutWaiting(t *testing.T) {
	t.Parallel()
	p := shopWith(right)
	p.Config.Wait = -1
	wantNone(t, stormOrders(t, p, pgtest.MaxConns(1), func(cfg *pgxpool.Config) {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	}))
}

func reserve(ctx context.Context, op *idempotency.Op, in order) (int, error) {
	return idempotency.Step(ctx, op, "reserve", func(ctx context.Context, tx pgx.Tx) (int, error) { return charge(in.ID)(ctx, tx) })
}

func TestRightProceduresOfOtherShapesPassTheStorm(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func(*shop) runs{
		"one step": func(*shop) runs {
			return func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
				n, err := reserve(ctx, op, in)
				return receipt{N: n}, err
			}
		},
		"two calls, the first of two requests, and a step": func(s *shop) runs {
			return func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
				_, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (string, error) {
					id, err := ask(ctx, http.MethodPost, s.url+"/intents", key+"-1", in)
					if err != nil {
						return "", err
					}
					if _, err := ask(ctx, http.MethodGet, s.url+"/rates", "", nil); err != nil {
						return "", err
					}
					return ask(ctx, http.MethodPost, s.url+"/intents/"+id+"/confirm", key+"-2", in)
				})
				if err != nil {
					return receipt{}, err
				}
				id, err := idempotency.Call(ctx, op, "mail", func(ctx context.Context, key string) (string, error) {
					return ask(ctx, http.MethodPut, s.url+"/mails", key, in)
				})
				if err != nil {
					return receipt{}, err
				}
				n, err := reserve(ctx, op, in)
				return receipt{n, id}, err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantNone(t, stormOrders(t, procedureOf(run)))
		})
	}
}

func TestKeyAndAnswerOfAProviderCanBeElsewhere(t *testing.T) {
	t.Parallel()
	type charge struct{ Key, Order string }
	p := shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, key string, in order) (string, error) {
			id, err := ask(ctx, http.MethodPost, s.url, "", charge{key, in.ID})
			if id != "charge of "+in.ID {
				return "", fmt.Errorf("%q, %w", id, err)
			}
			return id, err
		}
	})
	read := func(r *http.Request) (c charge) {
		_ = json.NewDecoder(r.Body).Decode(&c)
		return c
	}
	p.KeyOf = func(r *http.Request) string { return read(r).Key }
	p.Answer = func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"id": "charge of " + read(r).Order})
	}
	wantNone(t, stormOrders(t, p))
}

func TestReportsARandomKeyAtTheProvider(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, _ string, in order) (string, error) {
			return pay(ctx, s.url, fmt.Sprint(rand.Uint64()), in) // the mistake
		}
	}))
	want(t, report, "in two processes, an attempt killed before the result of call \"charge\" is recorded",
		`call "charge" reached the provider with another key in a later attempt`, "1 key, the same in each attempt", "send the key that it is given",
		"wrong number of effects at the provider", `1 effect of call "charge"`, "found:       2 effects")
}

func TestReportsACallThatIgnoresItsKey(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, _ string, in order) (string, error) { return pay(ctx, s.url, "", in) }
	}))
	want(t, report, `call "charge" reached the provider without a key`, "none in POST /charges, at idemtest/procedure_test.go:", "ignores the key that it is given")
}

func TestReportsAChargeInAStep(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*shop)
		step   string
	}{
		"first": {func(s *shop) {
			s.reserve = func(ctx context.Context, tx pgx.Tx, in order) (int, error) {
				if _, err := pay(ctx, s.url, in.ID, in); err != nil { // the mistake
					return 0, err
				}
				return charge(in.ID)(ctx, tx)
			}
		}, `step "reserve"`},
		"last, by another goroutine": {func(s *shop) {
			s.confirm = func(ctx context.Context, _ pgx.Tx, in order) error {
				paid := make(chan error)
				go func() {
					_, err := pay(ctx, s.url, in.ID, in) // the mistake
					paid <- err
				}()
				return <-paid
			}
		}, `step "confirm"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := stormOrders(t, shopWith(c.change))
			want(t, report, c.step+" had an effect outside of the database", "POST /charges in "+c.step+", at idemtest/procedure_test.go:", "Send it in a Call")
			if strings.Contains(report, "wrong number") {
				t.Error("there was one effect")
			}
		})
	}
}

func TestReportsARequestBetweenSteps(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.between = func(ctx context.Context, in order) error {
			_, err := pay(ctx, s.url, in.ID, in)
			return err
		}
	}))
	want(t, report, "an effect outside of the steps and calls", `POST /charges beside step "reserve", at idemtest/procedure_test.go:`, "Send it in a Call")
}

func TestReportsACallThatIsMadeAgainByAStep(t *testing.T) {
	t.Parallel()
	var keys sync.Map
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, key string, in order) (string, error) {
			keys.Store(in.ID, key)
			return pay(ctx, s.url, key, in)
		}
		s.confirm = func(ctx context.Context, _ pgx.Tx, in order) error {
			key, _ := keys.Load(in.ID)
			_, err := pay(ctx, s.url, key.(string), in) // the mistake
			return err
		}
	}))
	want(t, report, `call "charge" was made again although its result was recorded`, `in step "confirm"`, "use what Call has returned")
}

func TestReportsACallThatTakesNoAnswerForARefusal(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		takes func(error) bool
		want  []string
	}{
		"a lost connection": {func(err error) bool { return !errors.Is(err, status(http.StatusConflict)) },
			[]string{"the provider's answer to call \"charge\" lost", "none: the connection was lost"}},
		"a conflict": {func(err error) bool { return errors.Is(err, status(http.StatusConflict)) },
			[]string{"and another attempt beside it", "409"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			report := stormOrders(t, shopWith(func(s *shop) {
				s.charge = func(ctx context.Context, key string, in order) (string, error) {
					id, err := pay(ctx, s.url, key, in)
					if err != nil && ctx.Err() == nil && c.takes(err) {
						return "declined", nil // the mistake
					}
					return id, err
				}
			}))
			want(t, report, append(c.want, `call "charge" was recorded without the answer of the provider`, "return an error, unless")...)
		})
	}
}

func TestReportsAVariableOfACallThatAStepRecords(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, procedureOf(func(s *shop) runs {
		return func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
			n, err := reserve(ctx, op, in)
			if err != nil {
				return receipt{}, err
			}
			charged := "nobody"
			if _, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (id string, err error) {
				charged = "somebody" // the mistake
				return pay(ctx, s.url, key, in)
			}); err != nil {
				return receipt{}, err
			}
			return idempotency.Step(ctx, op, "confirm", func(context.Context, pgx.Tx) (receipt, error) { return receipt{n, charged}, nil })
		}
	}))
	want(t, report, `another result than that of an operation that nothing has disturbed`, "Charge = somebody, as in two others", "found:       nobody", "return it as the value")
}

func TestRequestsWithoutKeysAreNotTakenForOne(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, _ string, in order) (string, error) { return pay(ctx, s.url, "", in) }
		s.confirm = func(ctx context.Context, _ pgx.Tx, in order) error {
			_, err := pay(ctx, s.url, "", in)
			return err
		}
	}))
	want(t, report, `step "confirm" had an effect outside of the database`, `call "charge" reached the provider without a key`)
}

// A ledger is neither the database nor the provider.
type ledger struct {
	mu      sync.Mutex
	entries map[string]int
}

func (l *ledger) enter(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[id]++
}

// ledgerOrders counts the entries of the ledger too.
func ledgerOrders(change func(*shop, *ledger)) orders {
	l := &ledger{entries: make(map[string]int)}
	p := shopWith(func(s *shop) {
		s.reserve = func(context.Context, pgx.Tx, order) (int, error) { return 1, nil }
		change(s, l)
	})
	p.Effects = func(_ context.Context, _ *pgxpool.Pool, id string) (int, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.entries[id], nil
	}
	return p
}

func TestReportsAnEffectOfAStepThatItsTransactionDoesNotHave(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*shop, *ledger)
		step   string
	}{
		"in the first": {func(s *shop, l *ledger) {
			s.reserve = func(_ context.Context, _ pgx.Tx, in order) (int, error) { l.enter(in.ID); return 1, nil }
		}, `step "reserve"`},
		"in the last": {func(s *shop, l *ledger) {
			s.confirm = func(_ context.Context, _ pgx.Tx, in order) error { l.enter(in.ID); return nil }
		}, `step "confirm"`},
		"behind the first": {func(s *shop, l *ledger) {
			s.between = func(_ context.Context, in order) error { l.enter(in.ID); return nil }
		}, `step "reserve"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want(t, stormOrders(t, ledgerOrders(c.change)), c.step+" had an effect outside of its transaction",
				"Effects has counted 1 before the COMMIT, and 0 before the step", "not made through tx")
		})
	}
}

// The guard does not see it: the context is another.
func TestReportsAWriteThroughThePoolInAStep(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.reserve = func(_ context.Context, _ pgx.Tx, in order) (n int, err error) {
			return n, s.pool.QueryRow(context.Background(), insert, in.ID).Scan(&n)
		}
	}))
	want(t, report, `step "reserve" had an effect outside of its transaction`)
}

func TestReportsAWriteThroughThePoolInACall(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, key string, in order) (string, error) {
			_, err := s.pool.Exec(ctx, "insert into charges (request) values ($1)", in.ID)
			return key, err
		}
	}))
	want(t, report, "a connection of the pool inside the function", "in a procedure those of a step", "most likely: the other report, on the line of the statement")
}

func TestReportsAnEffectOfACallThatIsRepeated(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, ledgerOrders(func(s *shop, l *ledger) {
		s.charge = func(ctx context.Context, key string, in order) (string, error) {
			l.enter(in.ID)
			return pay(ctx, s.url, key, in)
		}
	}))
	want(t, report, "wrong number of effects", "found:       2 effects", `That was at call "charge"`)
}

func TestReportsARequestThatDiffersFromAttemptToAttempt(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, key string, in order) (string, error) {
			return pay(ctx, s.url, key, order{in.ID + fmt.Sprint(rand.Uint64())})
		}
	}))
	want(t, report, `call "charge" sent another request with the same key`, "POST /charges at idemtest/procedure_test.go:", "recorded values", "calls failed")
}

func TestReportsTwoCallsWithOneKey(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, procedureOf(func(s *shop) runs {
		return func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
			for _, name := range []string{"charge", "tip"} {
				_, err := idempotency.Call(ctx, op, name, func(ctx context.Context, _ string) (string, error) { return pay(ctx, s.url, in.ID, in) })
				if err != nil {
					return receipt{}, err
				}
			}
			n, err := reserve(ctx, op, in)
			return receipt{N: n}, err
		}
	}))
	want(t, report, `call "charge" and call "tip" reached the provider with the same key`)
}

func TestReportsAProcedureWithOtherStepsInALaterAttempt(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, procedureOf(func(s *shop) runs {
		return func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
			_, err := idempotency.Step(ctx, op, fmt.Sprint(rand.Uint64()), func(context.Context, pgx.Tx) (int, error) { return 1, nil })
			if err != nil {
				return receipt{}, err
			}
			return s.run(ctx, op, in)
		}
	}))
	want(t, report, "calls failed", "depends on something that is not recorded")
}

func TestReportsCallsThatReachNoProvider(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(context.Context, string, order) (string, error) { return "", nil }
	}))
	want(t, report, "no request to the provider", `a request of call "charge"`, "another address")
}

func TestReportsAProcedureThatFails(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, shopWith(func(s *shop) {
		s.confirm = func(context.Context, pgx.Tx, order) error { return errors.New("out of stock") }
	}))
	want(t, report, "calls failed", "1 x out of stock", "an attempt that is made to stop")
}

func TestReportsAProcedureWithoutItsEffect(t *testing.T) {
	t.Parallel()
	want(t, stormOrders(t, ledgerOrders(func(*shop, *ledger) {})), "wrong number of effects", "found:       0 effects", "counts something else than the procedure writes")
}

func TestProviderLosesAnswersAndRefusesASecondRequestAtATime(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := make(map[int]int)
	report := stormOrders(t, shopWith(func(s *shop) {
		s.charge = func(ctx context.Context, key string, in order) (string, error) {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, strings.NewReader(in.ID))
			if err != nil {
				return "", err
			}
			r.Header.Set("Idempotency-Key", key)
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				seen[0]++
				return "", err
			}
			defer answer.Body.Close()
			mu.Lock()
			defer mu.Unlock()
			if seen[answer.StatusCode]++; answer.StatusCode != http.StatusOK {
				return "", errors.New(answer.Status)
			}
			body, err := io.ReadAll(answer.Body)
			return string(body), err
		}
	}))
	wantNone(t, report)
	if seen[0] == 0 || seen[http.StatusConflict] == 0 || seen[http.StatusUnprocessableEntity] > 0 {
		t.Errorf("answers by their status, 0 where they were lost: %v", seen)
	}
}

func TestReportsAStepThatRemembersInMemoryWhatItHasDone(t *testing.T) {
	t.Parallel()
	var done sync.Map
	report := stormOrders(t, shopWith(func(s *shop) {
		s.reserve = func(ctx context.Context, tx pgx.Tx, in order) (int, error) {
			if _, again := done.LoadOrStore(in.ID, true); again { // the mistake
				return 1, nil
			}
			return charge(in.ID)(ctx, tx)
		}
	}))
	want(t, report, `the connection cut before the COMMIT behind step "reserve" arrives`, "found:       0 effects", `remembers outside of the database`, `ended at step "reserve"`)
}

// That the call begins is recorded before, by a COMMIT of its own.
func TestReportsTheRightStepBehindACallThatComesFirst(t *testing.T) {
	t.Parallel()
	var done sync.Map
	callFirst := func(reserve func(ctx context.Context, tx pgx.Tx, s *shop, in order) (int, error)) orders {
		return procedureOf(func(s *shop) runs {
			return func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
				id, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (string, error) { return pay(ctx, s.url, key, in) })
				if err != nil {
					return receipt{}, err
				}
				n, err := idempotency.Step(ctx, op, "reserve", func(ctx context.Context, tx pgx.Tx) (int, error) { return reserve(ctx, tx, s, in) })
				return receipt{n, id}, err
			}
		})
	}
	want(t, stormOrders(t, callFirst(func(ctx context.Context, tx pgx.Tx, _ *shop, in order) (int, error) {
		if _, again := done.LoadOrStore(in.ID, true); again {
			return 1, nil
		}
		return charge(in.ID)(ctx, tx)
	})), `before the COMMIT behind step "reserve" arrives`, "found:       0 effects")
	want(t, stormOrders(t, callFirst(func(_ context.Context, _ pgx.Tx, s *shop, in order) (n int, err error) {
		return n, s.pool.QueryRow(context.Background(), insert, in.ID).Scan(&n)
	})), `step "reserve" had an effect outside of its transaction`)
}

func TestReportsAResultThatIsNotMadeOfRecordedValues(t *testing.T) {
	t.Parallel()
	report := stormOrders(t, procedureOf(func(s *shop) runs {
		return func(ctx context.Context, op *idempotency.Op, in order) (r receipt, err error) {
			_, err = idempotency.Step(ctx, op, "reserve", func(ctx context.Context, tx pgx.Tx) (bool, error) {
				r.N, err = charge(in.ID)(ctx, tx) // the mistake: a later attempt does not run this
				return true, err
			})
			return r, err
		}
	}))
	want(t, report, "another result in a later attempt", `{"N":1,"Charge":""}, as in the first attempt`, `found:       {"N":0,"Charge":""}`, "return it as the value of the step")
}

// What each of the rounds does to the attempts, by what the procedure's functions see.
func TestAttemptsAreEndedInAndBehindEachStepAndCall(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var rounds []string // what was run
	see := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		rounds[len(rounds)-1] += what
	}
	p := procedureOf(func(s *shop) runs {
		return func(ctx context.Context, op *idempotency.Op, in order) (receipt, error) {
			see("|")
			n, err := idempotency.Step(ctx, op, "reserve", func(ctx context.Context, tx pgx.Tx) (int, error) {
				see("r")
				return charge(in.ID)(ctx, tx)
			})
			if err != nil {
				return receipt{}, err
			}
			id, err := idempotency.Call(ctx, op, "charge", func(ctx context.Context, key string) (string, error) {
				see("c")
				return pay(ctx, s.url, key, in)
			})
			if err != nil {
				return receipt{}, err
			}
			return idempotency.Step(ctx, op, "confirm", func(context.Context, pgx.Tx) (receipt, error) {
				see("f")
				return receipt{n, id}, nil
			})
		}
	})
	p.Prepare = func(context.Context, *pgxpool.Pool, string) error {
		rounds = append(rounds, "")
		return nil
	}
	wantNone(t, stormOrders(t, p))
	for i, expected := range []struct {
		ran      string // a refused request of two that meet can be tried more than once: +
		attempts int    // or more, since another process may take over where one has committed
	}{
		{"rcf", 2},   // made to stop
		{"rcf", 2},   // once more
		{"rcf", 1},   // duplicates
		{"rrcf", 2},  // cut before the COMMIT behind reserve
		{"rcf", 2},   // killed after it
		{"rcf", 2},   // its context ended
		{"rccf", 2},  // killed before the result of charge is recorded
		{"rcf", 2},   // killed after it
		{"rcf", 2},   // its context ended
		{"rccf", 2},  // the answer lost
		{"rcc+f", 3}, // cut in it, and another attempt beside it
		{"rcff", 2},  // cut before the COMMIT behind confirm
		{"rcf", 1},   // killed after it
		{"rcf", 1},   // its context ended
	} {
		ran := strings.ReplaceAll(rounds[i], "|", "")
		if !regexp.MustCompile("^"+expected.ran+"$").MatchString(ran) || strings.Count(rounds[i], "|") < expected.attempts {
			t.Errorf("round %d of %q: want %+v", i, rounds, expected)
		}
	}
	if len(rounds) != 14 {
		t.Errorf("%d rounds: %q", len(rounds), rounds)
	}
}

func TestRefusesAProcedureProgramThatIsNotWhole(t *testing.T) {
	t.Parallel()
	pool := testDatabase(t)
	for reason, change := range map[string]func(*orders){
		"ProcedureProgram.Start is nil":           func(p *orders) { p.Start = nil },
		"ProcedureProgram.Input is nil":           func(p *orders) { p.Input = nil },
		"ProcedureProgram.Effects is nil":         func(p *orders) { p.Effects = nil },
		"ProcedureProgram.Config.CallPool is set": func(p *orders) { p.Config.CallPool = pool },
		"Program.Config.Schema is":                func(p *orders) { p.Config.Schema = "mine" },
	} {
		p := shopWith(right)
		change(&p)
		want(t, record(t, func(t testing.TB) { idemtest.StormProcedure(t, pool, 2, p) }), reason)
	}
}
