package idemhttp

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	// replayedHeader tells a client that it gets the recorded response.
	replayedHeader = "Idempotent-Replayed"

	// omittedHeader tells it that the body was too large to be recorded.
	omittedHeader = "Idempotent-Body-Omitted"
)

// hopByHop fields are of one connection (RFC 9110, section 7.6.1) or of the
// framing of one message, which net/http does. They are never recorded.
var hopByHop = []string{
	"Connection", "Content-Length", "Keep-Alive", "Proxy-Connection", "TE", "Trailer",
	"Transfer-Encoding", "Upgrade", replayedHeader, omittedHeader,
}

// ofOneExchange are the fields that say something of one exchange, and would be
// wrong, or a secret given away, in another. A star stands for any ending.
var ofOneExchange = []string{
	"Age", "Authentication-Info", "Date", "Proxy-Authenticate", "Proxy-Authentication-Info", "Server-Timing",
	"Set-Cookie", "Via",
	"RateLimit*", "X-RateLimit*", "X-Rate-Limit*",
	"Traceparent", "Tracestate", "Traceresponse", "B3", "X-B3-*", "X-Trace*", "X-Request-Id",
	"X-Correlation-Id", "X-Amzn-Trace-Id", "X-Amzn-RequestId", "X-Cloud-Trace-Context",
	"X-Runtime", "X-Response-Time",
}

// recorded returns the fields of a response that a replay has too.
func (m *Middleware) recorded(h http.Header) http.Header {
	kept := make(http.Header, len(h))
	nominated := strings.Split(strings.Join(h["Connection"], ","), ",")
	for name, values := range h {
		if !m.isOfOneExchange(name) && !matches(name, nominated) {
			kept[name] = values
		}
	}
	return kept
}

func (m *Middleware) isOfOneExchange(name string) bool {
	switch {
	case matches(name, hopByHop):
		return true
	case matches(name, m.cfg.KeepHeaders):
		return false
	}
	return matches(name, ofOneExchange) || matches(name, m.cfg.DropHeaders)
}

func matches(name string, patterns []string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		pattern = strings.ToLower(strings.Trim(pattern, " \t"))
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(name, prefix)
		}
		return name == pattern
	})
}

// describesBody reports whether a field is of a body (RFC 9110, section 8), and
// so wrong without it. Content-Location names a resource, not the bytes.
func describesBody(name string) bool {
	return name != "Content-Location" && strings.HasPrefix(name, "Content-") ||
		matches(name, []string{"ETag", "Last-Modified", "Accept-Ranges", "Digest", "Repr-Digest"})
}

// replay sends a recorded response again. What outer middleware has put into
// the header is of this exchange, and stays unless the response had the field.
func replay(w http.ResponseWriter, r *record) {
	h := toHeader(r.Header)
	h.Set(replayedHeader, "true")
	if r.Omitted {
		h.Set(omittedHeader, "true")
	}
	send(w, r.Status, h, r.Body, toHeader(r.Trailer))
}

// send writes a response whose every part is known. A client that has gone
// meanwhile asks again, and gets the record.
func send(w http.ResponseWriter, status int, header http.Header, body []byte, trailer http.Header) {
	h := w.Header()
	maps.Copy(h, header)
	switch {
	case len(trailer) > 0: // announced ones make net/http send chunks
		h["Trailer"] = slices.Sorted(maps.Keys(trailer))
	case bodyAllowed(status):
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	if len(body) > 0 {
		_, _ = w.Write(body)
	}
	maps.Copy(h, trailer)
}

// bodyAllowed is RFC 9110, sections 15.3.5 and 15.4.5.
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
