package main

import (
	"log/slog"
	"net/http"
	"time"
)

// logged writes a line for each request, but not for those of the machinery that
// asks after our health. Nothing secret is in it: neither keys nor bodies.
func logged(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			next.ServeHTTP(w, r)
			return
		}
		start := time.Now()
		seen := &statusWriter{ResponseWriter: w}
		defer func() { // also when the handler panics
			log.InfoContext(r.Context(), "request",
				"method", r.Method, "path", r.URL.Path, "status", seen.status,
				"replayed", w.Header().Get("Idempotent-Replayed") == "true",
				"milliseconds", time.Since(start).Milliseconds())
		}()
		next.ServeHTTP(seen, r)
	})
}

// A statusWriter notes the status; 0 until there is one.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status < 200 { // the last one: 1xx can come before it
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status < 200 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
