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
// exchange, or give a secret away, by the reason. A star stands for any beginning
// or ending, and an underscore is a hyphen. They are not recorded either.
//
// Names of secrets are made anew in every house, so these are found by the words
// at their end. What such a rule takes by mistake is missing in a replay, and can
// be kept by Config.KeepHeaders; a secret that it lets through is in the table and
// its backups. Therefore a word that means both is taken.
var oneExchange = []struct {
	why    string
	fields []string
}{
	{"the time and the way of one message", []string{
		"Age", "Date", "Via", "Cache-Status", "X-Cache*", "X-Varnish", "Proxy-Status", "X-Served-By",
	}},
	{"sets or clears state of one client, who may have signed in or out since", []string{
		"*Cookie", "*Cookie2", "*Cookies", "Clear-Site-Data", "Set-Login", "Secure-Session-*", "Sec-Session-*",
	}},
	{"one step of an authentication, which a client must not believe twice", []string{
		"*WWW-Authenticate", "*Proxy-Authenticate", "Authentication-Info", "Authentication-Control", "Proxy-Authentication-Info",
		"*Challenge", "*OTP",
	}},
	{"a secret, which would be kept in the table", []string{
		"*Token", "*Tokens", "*JWT", "*JWS", "*JWE", "X-JWT-*", "*Assertion", "*Authorization", "*Bearer", "Auth", "X-Auth", "DPoP",
		"*Secret", "*Password", "*Passwd", "*Passphrase", "*Passcode", "*Credential", "*Credentials",
		"*Api-Key", "*ApiKey", "*Access-Key", "*AccessKey", "*Secret-Key", "*SecretKey", "*Private-Key", "*PrivateKey", "*Auth-Key", "*Session-Key", "*Signing-Key", "*Encryption-Key",
		"Session", "X-Session", "*Session-Id", "*SessionId", "*SessId",
		"X-Ms-Token-*", "X-Amzn-Oidc-*", "X-Firebase-AppCheck", "X-SAML-*", "SAMLResponse",
	}},
	{"good for one use", []string{
		"*Nonce", "X-CSRF*", "CSRF*", "X-XSRF*", "XSRF*", "*CSRF",
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

// notSecret are fields whose names end as those of secrets, and that are a part of
// what the response says.
var notSecret = []struct {
	why    string
	fields []string
}{
	{"where a list goes on, or from where changes are asked for", []string{
		"*Page-Token", "*PageToken", "*Next-Token", "*NextToken", "*Continuation-Token", "*ContinuationToken", "*Pagination-Token", "*PaginationToken",
		"*Cursor-Token", "*Sync-Token", "*SyncToken", "*Delta-Token", "*DeltaToken", "*Skip-Token", "*SkipToken",
	}},
	{"what was read or written, to be named in later requests", []string{
		"*Consistency-Token", "*Version-Token", "*Sequence-Token",
	}},
	{"what LOCK has made, which is no secret (RFC 4918, section 6.4)", []string{
		"Lock-Token",
	}},
}

// ofOneExchange are the fields of oneExchange, and ofTheResponse those of notSecret.
var ofOneExchange, ofTheResponse = func() (left, kept []string) {
	for _, reason := range oneExchange {
		left = append(left, reason.fields...)
	}
	for _, reason := range notSecret {
		kept = append(kept, reason.fields...)
	}
	return left, kept
}()

// notReplayed is what isOfOneExchange says, for the policy.
func (m *Middleware) notReplayed() (fields []string) {
	for _, name := range slices.Concat(ofOneExchange, m.cfg.DropHeaders) {
		if m.isOfOneExchange(name) {
			fields = append(fields, name)
		}
	}
	for _, name := range slices.Concat(ofTheResponse, m.cfg.KeepHeaders) {
		fields = append(fields, "!"+name)
	}
	return fields
}

func (m *Middleware) isOfOneExchange(name string) bool {
	switch {
	case matches(name, hopByHop):
		return true
	case matches(name, m.cfg.KeepHeaders):
		return false
	}
	words := strings.ReplaceAll(name, "_", "-")
	return matches(words, ofOneExchange) && !matches(words, ofTheResponse) || matches(name, m.cfg.DropHeaders)
}

// matches reports whether a name is one of the patterns: a name, in which a star
// at the beginning or the end, or at both, stands for anything.
func matches(name string, patterns []string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		pattern = strings.ToLower(strings.Trim(pattern, " \t"))
		ending, anyBeginning := strings.CutPrefix(pattern, "*")
		middle, anyEnding := strings.CutSuffix(ending, "*")
		switch {
		case anyBeginning && anyEnding:
			return strings.Contains(name, middle)
		case anyBeginning:
			return strings.HasSuffix(name, ending)
		case anyEnding:
			return strings.HasPrefix(name, middle)
		}
		return name == pattern
	})
}
