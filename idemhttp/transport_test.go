package idemhttp

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRepeatedWithTheSameBytesOnStatus(t *testing.T) {
	t.Parallel()
	for _, status := range []int{408, 425, 429, 502, 503, 504} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			srv := serve(t, answer(status), answer(status), answer(201))
			resp, err := srv.client().Do(post(t, srv.URL, "charge 100"))
			check(t, resp, err, 201, 3)
			srv.sameKeyAndBody(t, 3, "charge 100")
		})
	}
}

func TestNotRepeatedOnOtherStatus(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 201, 204, 304, 400, 401, 403, 404, 413, 422, 500, 501, 505} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			srv := serve(t, answer(status, "Retry-After", "0"), answer(299))
			resp, err := srv.client().Do(post(t, srv.URL, "x"))
			check(t, resp, err, status, 1)
		})
	}
}

func TestConflictInFlightIsRepeated(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(409, "Retry-After", "1", "Content-Type", "application/problem+json"), answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 2)
	srv.sameKeyAndBody(t, 2, "x")
}

func TestConflictOfTheApplicationIsNotRepeated(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(409, "Content-Type", "application/problem+json"), answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 409, 1)
}

func TestRepeatedWithTheSameBytesOnConnectionErrors(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]handler{
		"reset before the request is read":          reset,
		"closed after the request is read":          closeAfterRequest,
		"closed in the middle of the status line":   breakOff("HTTP/1.1 20"),
		"closed in the middle of the header":        breakOff("HTTP/1.1 201 Created\r\nContent-Len"),
		"closed after an informational response":    breakOff("HTTP/1.1 103 Early Hints\r\n\r\n"),
		"answered with something that is not HTTP":  breakOff("go away\r\n\r\n"),
		"silent for longer than Base is willing to": hang,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := serve(t, broken, broken, answer(201))
			if strings.HasPrefix(name, "silent") {
				srv.base.ResponseHeaderTimeout = 50 * time.Millisecond
			}
			resp, err := srv.client().Do(post(t, srv.URL, "charge 100"))
			check(t, resp, err, 201, 3)
			srv.sameKeyAndBody(t, -1, "charge 100")
		})
	}
}

func TestRepeatedWhenTheConnectionIsRefused(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(201))
	closed := closedAddress(t)
	dials := 0
	srv.base.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dials++; dials < 3 {
			addr = closed
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 3)
}

func TestRepeatedOverHTTP2(t *testing.T) {
	t.Parallel()
	srv := serveTLS(t, true, answer(503), closeAfterRequest, answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "charge 100"))
	check(t, resp, err, 201, 3)
	if resp.ProtoMajor != 2 {
		t.Errorf("the protocol is %s", resp.Proto)
	}
	srv.sameKeyAndBody(t, 3, "charge 100")
}

func TestNetHTTPMayRepeatByItselfWithTheSameBytes(t *testing.T) {
	t.Parallel()
	// The connection of the first answer is idle; that it ends is no error yet.
	srv := serve(t, answer(503), closeAfterRequest, answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 2)
	srv.sameKeyAndBody(t, 3, "x")
}

func TestWhatTLSRefusesIsNotRepeated(t *testing.T) {
	t.Parallel()
	t.Run("certificate that is not trusted", func(t *testing.T) {
		t.Parallel()
		srv := serveTLS(t, false, answer(201))
		srv.base = &http.Transport{}
		_, err := srv.client().Do(post(t, srv.URL, "x"))
		checkError(t, err, 1, "certificate")
	})
	t.Run("server without TLS", func(t *testing.T) {
		t.Parallel()
		srv := serve(t, answer(201))
		_, err := srv.client().Do(post(t, strings.Replace(srv.URL, "http:", "https:", 1), "x"))
		checkError(t, err, 1, "TLS handshake")
	})
}

func TestLastResponseIsReturnedUnread(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503), answer(502), answer(504), answer(201))
	c := srv.client()
	c.Transport.(*Transport).MaxAttempts = 3
	resp, err := c.Do(post(t, srv.URL, "x"))
	check(t, resp, err, 504, 3)
	if got := text(t, resp); got != "status 504" {
		t.Errorf("the body is %q", got)
	}
}

func TestLastErrorNamesKeyAndAttemptsAndWrapsTheCause(t *testing.T) {
	t.Parallel()
	c := http.Client{Transport: &Transport{MaxAttempts: 3, sleep: noSleep}}
	req := post(t, "http://"+closedAddress(t), "x")
	_, err := c.Do(req.WithContext(WithKey(t.Context(), "order-42")))
	checkError(t, err, 3, "idemhttp: key order-42, 3 attempts: dial tcp")
	if _, ok := errors.AsType[*net.OpError](err); !ok {
		t.Errorf("%v does not wrap its cause", err)
	}
	if key, _ := Sent(nil, err); key != "order-42" {
		t.Errorf("Sent's key is %q", key)
	}
}

func TestOneAttemptOnlyIfTheBodyCannotBeSentAgain(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]handler{"response": answer(503), "error": closeAfterRequest} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := serve(t, first, answer(201))
			req := post(t, srv.URL, "")
			body := newBody("stream")
			req.Body, req.ContentLength, req.GetBody = body, 6, nil
			resp, err := srv.client().Do(req)
			if name == "response" {
				check(t, resp, err, 503, 1)
			} else {
				checkError(t, err, 1, "1 attempt: ")
			}
			srv.sameKeyAndBody(t, 1, "stream")
			body.mustClose(t)
		})
	}
}

func TestRepeatedWithoutABody(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]io.ReadCloser{"nil": nil, "NoBody": http.NoBody} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := serve(t, answer(503), answer(204))
			req := post(t, srv.URL, "")
			req.Body, req.GetBody = body, nil
			resp, err := srv.client().Do(req)
			check(t, resp, err, 204, 2)
			srv.sameKeyAndBody(t, 2, "")
		})
	}
}

func TestEveryBodyIsClosed(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503), reset, answer(201))
	req := post(t, srv.URL, "")
	var bodies []*body
	getBody := func() (io.ReadCloser, error) {
		bodies = append(bodies, newBody("again"))
		return bodies[len(bodies)-1], nil
	}
	req.Body, _ = getBody()
	req.GetBody, req.ContentLength = getBody, 5
	resp, err := srv.client().Do(req)
	check(t, resp, err, 201, 3)
	for _, body := range bodies {
		body.mustClose(t)
	}
	if len(bodies) != 3 {
		t.Errorf("there were %d bodies", len(bodies))
	}
}

func TestErrorOfGetBodyEndsTheAttempts(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503), answer(201))
	req := post(t, srv.URL, "x")
	gone := errors.New("the file is gone")
	req.GetBody = func() (io.ReadCloser, error) { return nil, gone }
	_, err := srv.client().Do(req)
	checkError(t, err, 1, "getting the body again")
	if !errors.Is(err, gone) {
		t.Errorf("%v does not wrap its cause", err)
	}
}

func TestRequestIsNotModified(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503), answer(201))
	req := post(t, srv.URL, "x")
	before, header := *req, maps.Clone(req.Header)
	resp, err := srv.client().Transport.RoundTrip(req)
	check(t, resp, err, 201, 2)
	if req.Body != before.Body || req.URL != before.URL || req.Context() != before.Context() || req.ContentLength != before.ContentLength {
		t.Error("a field of the request has changed")
	}
	if !maps.EqualFunc(req.Header, header, slices.Equal) {
		t.Errorf("the header was %v and is %v", header, req.Header)
	}
}

func TestConnectionOfAnAbandonedResponseIsUsedAgain(t *testing.T) {
	t.Parallel()
	large := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(503)
		_, _ = w.Write(make([]byte, 60<<10))
	}
	srv := serve(t, large, answer(429), large, answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 4)
	if n := srv.connections(); n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

func TestAbandonedResponseWithoutEndIsGivenUp(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		w.WriteHeader(503)
		for {
			if _, err := w.Write(make([]byte, 4<<10)); err != nil {
				return
			}
		}
	}, answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 2)
	<-ended // the server has seen its connection closed
}

func TestAbandonedResponseThatStallsIsGivenUpWithinThePause(t *testing.T) {
	t.Parallel()
	srv := serve(t, stall, answer(201))
	resp, err := srv.client().Do(post(t, srv.URL, "x"))
	check(t, resp, err, 201, 2)
}

func TestCancelledContextEndsThePause(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503, "Retry-After", "20"))
	ctx, cancel := context.WithCancel(WithKey(t.Context(), "order-42"))
	c := srv.client()
	c.Transport.(*Transport).sleep = func(ctx context.Context, d time.Duration) error {
		time.AfterFunc(10*time.Millisecond, cancel)
		return sleep(ctx, d)
	}
	begun := time.Now()
	_, err := c.Do(post(t, srv.URL, "x").WithContext(ctx))
	checkError(t, err, 1, "key order-42, 1 attempt: waiting to send again: context canceled (the last attempt: 503 Service Unavailable)")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestCancelledContextEndsAnAttempt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	srv := serve(t, answer(503), func(w http.ResponseWriter, r *http.Request) {
		cancel()
		hang(w, r)
	})
	_, err := srv.client().Do(post(t, srv.URL, "x").WithContext(ctx))
	checkError(t, err, 2, "2 attempts: ")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
}

func TestClientTimeoutEndsTheAttempts(t *testing.T) {
	t.Parallel()
	srv := serve(t, hang)
	c := srv.client()
	c.Timeout = 50 * time.Millisecond
	_, err := c.Do(post(t, srv.URL, "x").WithContext(WithKey(t.Context(), "order-42")))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not context.DeadlineExceeded", err)
	}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v is no timeout", err)
	}
	if !strings.Contains(err.Error(), "key order-42, 1 attempt") {
		t.Errorf("%v does not name key and attempts", err)
	}
}

func TestTimeoutOfTheContextIsATimeout(t *testing.T) {
	t.Parallel()
	srv := serve(t, hang)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := srv.client().Do(post(t, srv.URL, "x").WithContext(ctx))
	checkError(t, err, 1, "1 attempt: ")
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%v is no timeout", err)
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	t.Parallel()
	srv := serve(t, answer(503), reset, closeAfterRequest, answer(429), answer(201))
	stalls := serve(t, stall)
	// Goroutines inherit the labels of those that start them.
	const label = "started by the transport"
	pprof.Do(t.Context(), pprof.Labels("label", label), func(ctx context.Context) {
		resp, err := srv.client().Do(post(t, srv.URL, "x"))
		check(t, resp, err, 201, 5)
		if !strings.Contains(goroutines(), label) {
			t.Error("the connection's goroutines do not show")
		}
		_ = text(t, resp)
		srv.client().CloseIdleConnections()

		ctx, cancel := context.WithCancel(ctx)
		c := stalls.client()
		c.Transport.(*Transport).sleep = func(ctx context.Context, _ time.Duration) error {
			cancel()
			return ctx.Err()
		}
		_, err = c.Do(post(t, stalls.URL, "x").WithContext(ctx))
		checkError(t, err, 1, "context canceled")
	})
	profile := goroutines()
	for i := 0; i < 500 && strings.Contains(profile, label); i++ {
		time.Sleep(10 * time.Millisecond) // they end shortly after their connection
		profile = goroutines()
	}
	if strings.Contains(profile, label) {
		t.Errorf("goroutines are left:\n%s", profile)
	}
}

func goroutines() string {
	var profile strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&profile, 1)
	return profile.String()
}

func TestManyOperationsAtOnce(t *testing.T) {
	t.Parallel()
	const operations = 50
	var mu sync.Mutex
	seen := map[string]int{} // attempts by key
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.Header.Get("Idempotency-Key")]++
		n := seen[r.Header.Get("Idempotency-Key")]
		mu.Unlock()
		switch n {
		case 1:
			answer(503)(w, r)
		case 2:
			breakOff("HTTP/1.1 20")(w, r)
		default:
			answer(201)(w, r)
		}
	})
	c := srv.client()
	var wg sync.WaitGroup
	for range operations {
		wg.Go(func() {
			resp, err := c.Do(post(t, srv.URL, "x"))
			check(t, resp, err, 201, 3)
			if resp != nil {
				_ = text(t, resp)
			}
		})
	}
	wg.Wait()
	if len(seen) != operations {
		t.Errorf("%d operations had %d keys", operations, len(seen))
	}
}
