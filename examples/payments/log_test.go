package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/pgidem/idempotency"
)

// serveLogged sends one request to a handler, and returns what was logged.
func serveLogged(t *testing.T, path string, handler http.HandlerFunc) string {
	t.Helper()
	var logs bytes.Buffer
	server := httptest.NewUnstartedServer(logged(slog.New(slog.NewJSONHandler(&logs, nil)), handler))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.Start()
	req, err := http.NewRequest("POST", server.URL+path, strings.NewReader("body-secret"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer alice-secret")
	req.Header.Set("Idempotency-Key", "key-secret")
	if resp, err := http.DefaultClient.Do(req); err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	server.Close() // waits for the handler
	return logs.String()
}

func TestLogHasALineForEachRequestAndNoSecret(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handler  http.HandlerFunc
		status   int
		replayed bool
	}{
		"a status": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set("Idempotent-Replayed", "true")
			w.WriteHeader(http.StatusPaymentRequired)
		}, 402, true},
		"a body":  {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }, 200, false},
		"a panic": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := serveLogged(t, "/charges", tt.handler)
			var line struct {
				Msg, Method, Path string
				Status            int
				Replayed          bool
			}
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if line.Msg != "request" || line.Method != "POST" || line.Path != "/charges" || line.Status != tt.status || line.Replayed != tt.replayed {
				t.Errorf("logged %s", text)
			}
			if strings.Contains(text, "secret") {
				t.Errorf("logged a secret: %s", text)
			}
		})
	}
}

func TestHealthIsNotLogged(t *testing.T) {
	t.Parallel()
	if text := serveLogged(t, "/healthz", healthz); text != "" {
		t.Errorf("logged %s", text)
	}
}

func TestRequestThatTakesTooLongEnds(t *testing.T) {
	t.Parallel()
	var cause error
	server := httptest.NewServer(limited(time.Millisecond, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		cause = r.Context().Err()
	})))
	if resp, err := http.Get(server.URL); err == nil {
		resp.Body.Close()
	}
	server.Close()
	if !errors.Is(cause, context.DeadlineExceeded) {
		t.Errorf("the context ended with %v", cause)
	}
}

func TestFailuresOfTheBackgroundAreLoggedOnce(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	ended, end := context.WithCancel(t.Context())
	end()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		e    idempotency.Event
		want string
	}{
		{"a purge", t.Context(), idempotency.Event{Operation: "Purge", Outcome: "failed", Err: broken}, "expired keys were not removed"},
		{"an abandoned ride", t.Context(), idempotency.Event{Operation: "Procedure", Outcome: "failed", Err: broken}, "an abandoned ride was not finished"},
		{"a ride that another process works at", t.Context(), idempotency.Event{Operation: "Procedure", Outcome: "in_progress", Err: idempotency.ErrInProgress}, ""},
		{"a request's ride", context.WithValue(t.Context(), accountKey{}, "alice"), idempotency.Event{Operation: "Procedure", Outcome: "failed", Err: broken}, ""},
		{"a success", t.Context(), idempotency.Event{Operation: "Procedure", Outcome: "executed"}, ""},
		{"the end of the process", ended, idempotency.Event{Operation: "Purge", Outcome: "failed", Err: broken}, ""},
	} {
		var logs bytes.Buffer
		logBackground(slog.New(slog.NewJSONHandler(&logs, nil)))(tt.ctx, tt.e)
		if got := logs.String(); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: logged %q", tt.name, got)
		}
	}
}
