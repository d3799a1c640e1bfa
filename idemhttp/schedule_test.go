package idemhttp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// The tests of this file have no socket: they run by the clock of their bubble,
// and fail if a goroutine or a timer of the Transport is left.

// A clocked Base keeps the time of each attempt.
type clocked struct {
	begun    time.Time
	attempts []time.Duration // since begun
	answer   func(attempt int) (*http.Response, error)
}

func (c *clocked) RoundTrip(req *http.Request) (*http.Response, error) {
	c.attempts = append(c.attempts, time.Since(c.begun))
	return c.answer(len(c.attempts))
}

func unavailableFor(retryAfter string) *http.Response {
	return &http.Response{
		StatusCode: 503, Status: "503 Service Unavailable",
		Header: http.Header{"Retry-After": {retryAfter}},
		Body:   io.NopCloser(http.NoBody),
	}
}

func always(retryAfter string) func(int) (*http.Response, error) {
	return func(int) (*http.Response, error) { return unavailableFor(retryAfter), nil }
}

func TestPausesDoubleWithJitter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: always("")}
		tr := &Transport{Base: base, MaxAttempts: 10, MaxElapsed: -1}
		resp, err := tr.RoundTrip(post(t, "http://example.com/", "x"))
		check(t, resp, err, 503, 10)
		want := 200 * time.Millisecond
		for i := 1; i < len(base.attempts); i++ {
			pause := base.attempts[i] - base.attempts[i-1]
			if pause < want/2 || pause > want*3/2+1 {
				t.Errorf("pause %d is %v, not about %v", i, pause, want)
			}
			want = min(2*want, 10*time.Second)
		}
	})
}

func TestPausesOfTwoClientsDiffer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, asked := range []string{"", "5"} {
			var first []time.Duration
			for range 2 {
				base := &clocked{begun: time.Now(), answer: always(asked)}
				_, _ = (&Transport{Base: base, MaxAttempts: 2}).RoundTrip(post(t, "http://example.com/", "x"))
				first = append(first, base.attempts[1])
			}
			if first[0] == first[1] {
				t.Errorf("with Retry-After %q both waited %v", asked, first[0])
			}
		}
	})
}

func TestRetryAfterIsWaitedFor(t *testing.T) {
	t.Parallel()
	for name, asked := range map[string]func() string{
		"seconds": func() string { return "7" },
		"date":    func() string { return time.Now().Add(7 * time.Second).UTC().Format(http.TimeFormat) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				base := &clocked{begun: time.Now(), answer: always(asked())}
				resp, err := (&Transport{Base: base, MaxAttempts: 2}).RoundTrip(post(t, "http://example.com/", "x"))
				check(t, resp, err, 503, 2)
				if waited := base.attempts[1]; waited < 7*time.Second || waited > 7200*time.Millisecond {
					t.Errorf("the second attempt came after %v", waited)
				}
			})
		})
	}
}

func TestRetryAfterMakesNoPauseShorter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: always("1")}
		resp, err := (&Transport{Base: base, MaxAttempts: 10, MaxElapsed: -1}).RoundTrip(post(t, "http://example.com/", "x"))
		check(t, resp, err, 503, 10)
		last := base.attempts[9] - base.attempts[8]
		if last < 5*time.Second {
			t.Errorf("the last pause is %v, and without Retry-After 5 s at least", last)
		}
	})
}

func TestRetryAfterZeroKeepsThePauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: always("0")}
		resp, err := (&Transport{Base: base}).RoundTrip(post(t, "http://example.com/", "x"))
		check(t, resp, err, 503, 6)
		if took := base.attempts[5]; took < 3*time.Second { // (0.2+0.4+0.8+1.6+3.2)/2
			t.Errorf("six attempts took %v", took)
		}
	})
}

func TestRetryAfterBeyondTheBoundEndsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, asked := range []string{"31", "86400", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"} {
			base := &clocked{begun: time.Now(), answer: always(asked)}
			resp, err := (&Transport{Base: base}).RoundTrip(post(t, "http://example.com/", "x"))
			check(t, resp, err, 503, 1)
			if took := time.Since(base.begun); took != 0 {
				t.Errorf("with Retry-After %s it took %v", asked, took)
			}
		}
	})
}

func TestNoAttemptBeginsAfterMaxElapsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: func(int) (*http.Response, error) {
			time.Sleep(time.Second) // an attempt takes time too
			return nil, io.ErrUnexpectedEOF
		}}
		tr := &Transport{Base: base, MaxAttempts: -1, MaxElapsed: 20 * time.Second}
		_, err := tr.RoundTrip(post(t, "http://example.com/", "x"))
		n := len(base.attempts)
		checkError(t, err, n, "unexpected EOF")
		if last := base.attempts[n-1]; n < 4 || last > 20*time.Second {
			t.Errorf("the last of %d attempts began after %v", n, last)
		}
	})
}

func TestMaxAttemptsOneIsNeverAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: always("")}
		resp, err := (&Transport{Base: base, MaxAttempts: 1}).RoundTrip(post(t, "http://example.com/", "x"))
		check(t, resp, err, 503, 1)
	})
}

func TestPauseBeyondTheDeadlineIsNotBegun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: always("5")}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		resp, err := (&Transport{Base: base}).RoundTrip(post(t, "http://example.com/", "x").WithContext(ctx))
		check(t, resp, err, 503, 1)
		if ctx.Err() != nil {
			t.Error("the deadline was waited for")
		}
	})
}

func TestCancelledContextEndsThePauseAtOnce(t *testing.T) {
	t.Parallel()
	cause := errors.New("connection lost")
	for name, answer := range map[string]func(int) (*http.Response, error){
		"after a response": always("20"),
		"after an error":   func(int) (*http.Response, error) { return nil, cause },
		"in a response that stalls": func(int) (*http.Response, error) {
			resp := unavailableFor("20")
			resp.Body = &stalling{closed: make(chan struct{})}
			return resp, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				base := &clocked{begun: time.Now(), answer: answer}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(50*time.Millisecond, cancel)
				_, err := (&Transport{Base: base}).RoundTrip(post(t, "http://example.com/", "x").WithContext(ctx))
				checkError(t, err, 1, "waiting to send again: context canceled")
				if !errors.Is(err, context.Canceled) || (name == "after an error") != errors.Is(err, cause) {
					t.Errorf("%v does not wrap its causes", err)
				}
				if took := time.Since(base.begun); took != 50*time.Millisecond {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestReadingAnAbandonedResponseIsPartOfThePause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stalled := &stalling{closed: make(chan struct{})}
		base := &clocked{begun: time.Now(), answer: func(attempt int) (*http.Response, error) {
			resp := unavailableFor("7")
			if attempt == 1 {
				resp.Body = stalled
			}
			return resp, nil
		}}
		resp, err := (&Transport{Base: base, MaxAttempts: 2}).RoundTrip(post(t, "http://example.com/", "x"))
		check(t, resp, err, 503, 2)
		if waited := base.attempts[1]; waited < 7*time.Second || waited > 7200*time.Millisecond {
			t.Errorf("the second attempt came after %v", waited)
		}
		<-stalled.closed
	})
}

func TestAbandonedResponseIsReadToItsBound(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, maxDiscard - 1, maxDiscard, 1 << 30} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				body := &counting{left: size}
				discard(t.Context(), body, time.Second)
				if want := min(size, maxDiscard); body.read != want || !body.closed {
					t.Errorf("%d bytes of %d were read, closed: %v", body.read, want, body.closed)
				}
			})
		})
	}
}

func TestErrorOfAnEndedContextIsTheContexts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cause := errors.New("operation was interrupted")
		ctx, cancel := context.WithCancel(t.Context())
		base := &clocked{begun: time.Now(), answer: func(int) (*http.Response, error) {
			cancel()
			return nil, cause // it does not say why
		}}
		_, err := (&Transport{Base: base}).RoundTrip(post(t, "http://example.com/", "x").WithContext(ctx))
		checkError(t, err, 1, "context canceled: operation was interrupted")
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
			t.Errorf("%v does not wrap its causes", err)
		}
	})
}

func TestBaseThatReturnsNothingIsLeftToTheClient(t *testing.T) {
	t.Parallel()
	base := &clocked{answer: func(int) (*http.Response, error) { return nil, nil }}
	c := &http.Client{Transport: &Transport{Base: base}}
	if _, err := c.Do(post(t, "http://example.com/", "x")); err == nil || len(base.attempts) != 1 {
		t.Errorf("after %d attempts the error is %v", len(base.attempts), err)
	}
}

// A stalling body has nothing to read until it is closed.
type stalling struct{ closed chan struct{} }

func (b *stalling) Read([]byte) (int, error) {
	<-b.closed
	return 0, errors.New("closed")
}

func (b *stalling) Close() error {
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return nil
}

type counting struct {
	left, read int
	closed     bool
}

func (b *counting) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), b.left)
	b.left -= n
	b.read += n
	return n, nil
}

func (b *counting) Close() error {
	b.closed = true
	return nil
}

func TestLaterDeadlineLeavesMaxElapsedItsBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: always("5")}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		tr := &Transport{Base: base, MaxAttempts: -1, MaxElapsed: 12 * time.Second}
		resp, err := tr.RoundTrip(post(t, "http://example.com/", "x").WithContext(ctx))
		check(t, resp, err, 503, 3)
		if last := base.attempts[len(base.attempts)-1]; last > 12*time.Second {
			t.Errorf("the last attempt began after %v", last)
		}
	})
}

func TestDeadlineIsTheBoundWhereMaxElapsedIsNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base := &clocked{begun: time.Now(), answer: always("5")}
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		tr := &Transport{Base: base, MaxAttempts: -1, MaxElapsed: -1}
		resp, err := tr.RoundTrip(post(t, "http://example.com/", "x").WithContext(ctx))
		check(t, resp, err, 503, 3)
	})
}
