package idemhttp

import "net/http"

// Final is the default of [Config.Record]. Not final is what says that the
// server failed (5xx), or that the same request, under its key, can succeed
// later or elsewhere:
//   - 307 and 308 say "repeat this there", and the client does, with the key.
//   - 401, 403, 407, 409, 421, 423, 425 and 429 judge who asks, where, or the
//     moment.
//   - 406, 411, 412, 416, 417, 426, 428 and 431 judge header fields that are not
//     in the fingerprint: a retry with the right ones is the same request.
//   - 408 says that the request has not arrived.
func Final(status int) bool {
	switch status {
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect,
		http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusConflict,
		http.StatusMisdirectedRequest, http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusNotAcceptable, http.StatusLengthRequired, http.StatusPreconditionFailed,
		http.StatusRequestedRangeNotSatisfiable, http.StatusExpectationFailed, http.StatusUpgradeRequired,
		http.StatusPreconditionRequired, http.StatusRequestHeaderFieldsTooLarge,
		http.StatusRequestTimeout:
		return false
	}
	return status < 500
}
