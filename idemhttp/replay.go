package idemhttp

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// recorded returns the fields of a response that a replay has too. Connection
// is the field of the response that names what belongs to the connection.
func (m *Middleware) recorded(h http.Header, connection []string) http.Header {
	kept := make(http.Header, len(h))
	nominated := strings.Split(strings.Join(connection, ","), ",")
	for name, values := range h {
		if !m.isOfOneExchange(name) && !matches(name, nominated) {
			kept[name] = values
		}
	}
	return kept
}

// describesBody reports whether a field is of a body (RFC 9110, section 8), and
// so wrong without it. Content-Location names a resource, not the bytes.
func describesBody(name string) bool {
	return name != "Content-Location" && strings.HasPrefix(name, "Content-") ||
		matches(name, []string{"ETag", "Last-Modified", "Accept-Ranges", "Digest", "Repr-Digest"})
}

// replay sends a recorded response again. What outer middleware has put into
// the header is of this exchange, and stays, unless the response had a field of
// its own, added to it, or had it deleted. An earlier release, or another Config,
// can have recorded what is not replayed here.
func (m *Middleware) replay(w http.ResponseWriter, r *record) {
	h := m.recorded(toHeader(r.Header), nil)
	for _, name := range r.Deleted {
		delete(w.Header(), name)
	}
	for name, values := range m.recorded(toHeader(r.Added), nil) {
		h[name] = slices.Concat(w.Header()[name], values)
	}
	h.Set(replayedHeader, "true")
	if r.Omitted {
		h.Set(omittedHeader, "true")
	}
	send(w, r.Status, h, r.Body, m.recorded(toHeader(r.Trailer), nil))
}

// send writes a response whose every part is known. A client that has gone
// meanwhile asks again, and gets the record.
func send(w http.ResponseWriter, status int, header http.Header, body []byte, trailer http.Header) {
	h := w.Header()
	maps.Copy(h, header)
	if len(trailer) > 0 { // beside those of outer middleware
		h["Trailer"] = slices.Concat(h["Trailer"], slices.Sorted(maps.Keys(trailer)))
	}
	if len(h["Trailer"]) == 0 && bodyAllowed(status) { // announced ones make net/http send chunks
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
