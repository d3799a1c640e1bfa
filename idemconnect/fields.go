package idemconnect

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/pgidem/idempotency/internal/transport"
)

// fields are the header and the trailer of the [connect.CallInfo] of a call, which are
// sent with its response or error. Connect-go sends nothing of a unary call before its
// handler and all interceptors have returned, so that they can be changed until then.
type fields struct {
	header, trailer           http.Header
	outerHeader, outerTrailer http.Header // as interceptors in front have left them
}

func fieldsOf(ctx context.Context) fields {
	info, ok := connect.CallInfoForHandlerContext(ctx)
	if !ok { // not the context of a handler of package connect: a test calls the interceptor
		return fields{header: http.Header{}, trailer: http.Header{}}
	}
	f := fields{header: info.ResponseHeader(), trailer: info.ResponseTrailer()}
	f.outerHeader, f.outerTrailer = f.header.Clone(), f.trailer.Clone()
	return f
}

// reset takes away what the handler has set.
func (f fields) reset() {
	restore(f.header, f.outerHeader)
	restore(f.trailer, f.outerTrailer)
}

func restore(h, before http.Header) {
	clear(h)
	maps.Copy(h, before.Clone())
}

// own are the fields that the handler has set, and the values that it has added to those
// of interceptors in front.
func own(h, outer http.Header) http.Header {
	mine := make(http.Header, len(h))
	for name, values := range h {
		if before := outer[name]; extends(values, before) {
			values = values[len(before):]
		}
		if len(values) > 0 {
			mine[name] = values
		}
	}
	return mine
}

func extends(values, before []string) bool {
	return len(values) >= len(before) && slices.Equal(values[:len(before)], before)
}

// replaced are the names of the fields of interceptors in front that the handler has set
// anew or deleted.
func replaced(h, outer http.Header) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(outer)) {
		if !extends(h[name], outer[name]) {
			names = append(names, name)
		}
	}
	return names
}

func remove(h http.Header, names []string) {
	for _, name := range names {
		delete(h, name)
	}
}

// binarySuffix is of names whose values are bytes, which are sent in base64.
const binarySuffix = "-Bin"

// toRecord is a header or trailer as it is stored.
func toRecord(all ...http.Header) (map[string][]transport.Octets, error) {
	stored := make(map[string][]string)
	for _, h := range all {
		for name, values := range h {
			lower := strings.ToLower(name)
			for _, value := range values {
				if strings.HasSuffix(http.CanonicalHeaderKey(name), binarySuffix) {
					bytes, err := connect.DecodeBinaryHeader(value)
					if err != nil {
						return nil, fmt.Errorf("the value of %s is not from connect.EncodeBinaryHeader: %w", name, err)
					}
					value = string(bytes)
				}
				stored[lower] = append(stored[lower], value)
			}
		}
	}
	return transport.ToOctets(stored), nil
}

// fromRecord adds what is stored to a header or trailer.
func fromRecord(h http.Header, stored map[string][]transport.Octets) {
	for name, values := range transport.FromOctets(stored) {
		name = http.CanonicalHeaderKey(name)
		for _, value := range values {
			if strings.HasSuffix(name, binarySuffix) {
				value = connect.EncodeBinaryHeader([]byte(value))
			}
			h.Add(name, value)
		}
	}
}
