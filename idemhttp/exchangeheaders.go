package idemhttp

import (
	"slices"
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

// oneExchange are the response header fields that would be wrong in another
// exchange, or give a secret away, by the reason. A star stands for any ending.
// They are not recorded either.
var oneExchange = []struct {
	why    string
	fields []string
}{
	{"the time and the way of one message", []string{
		"Age", "Date", "Via", "Cache-Status", "X-Cache*", "X-Varnish", "Proxy-Status", "X-Served-By",
	}},
	{"sets state of one client, who may have signed out since", []string{
		"Set-Cookie", "Set-Cookie2",
	}},
	{"one step of an authentication, which a client must not believe twice", []string{
		"WWW-Authenticate", "Authentication-Info", "Authentication-Control", "Proxy-Authenticate", "Proxy-Authentication-Info",
	}},
	{"a secret, which would be kept in the table", []string{
		"Authorization", "X-Auth-Token", "X-Access-Token", "X-Refresh-Token", "X-Id-Token", "X-Session-Token", "X-Session-Id",
		"X-Subject-Token", "X-Api-Key", "X-Amz-Security-Token",
	}},
	{"good for one use", []string{
		"Replay-Nonce", "DPoP-Nonce", "X-Nonce",
		"CSRF-Token", "X-CSRF-*", "X-CSRFToken", "X-XSRF-*", "XSRF-Token",
	}},
	{"the rate limit at one moment", []string{
		"RateLimit*", "X-RateLimit*", "X-Rate-Limit*",
	}},
	{"the trace and the log line of one request", []string{
		"Traceparent", "Tracestate", "Traceresponse", "Baggage", "B3", "X-B3-*", "X-Trace*", "Trace-Id", "Uber-Trace-Id", "Uberctx-*",
		"Sentry-Trace", "X-Datadog-*", "X-Ot-Span-Context", "Grpc-Trace-Bin", "X-Cloud-Trace-Context", "X-Amzn-Trace-Id",
		"Request-Id", "X-Request-Id", "X-Correlation-Id", "Correlation-Id", "Request-Context",
		"X-Amzn-RequestId", "X-Amz-Request-Id", "X-Amz-Id-2", "X-Amz-Cf-Id", "X-Amz-Cf-Pop", "X-Amz-Apigw-Id",
		"X-Ms-Request-Id", "X-Azure-Ref", "X-Github-Request-Id", "X-Vercel-Id", "X-Fastly-Request-Id", "Fly-Request-Id",
		"CF-Ray", "CF-Cache-Status", "X-Ray*",
	}},
	{"how long one execution took", []string{
		"Server-Timing", "X-Runtime", "X-Response-Time", "X-Envoy-Upstream-Service-Time",
	}},
	{"the handshake of one connection", []string{
		"Sec-WebSocket-*",
	}},
}

// ofOneExchange are the fields of oneExchange.
var ofOneExchange = func() (fields []string) {
	for _, reason := range oneExchange {
		fields = append(fields, reason.fields...)
	}
	return fields
}()

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
