package idemhttp

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestSecretThatAnEarlierReleaseHasRecordedIsNotReplayed(t *testing.T) {
	t.Parallel()
	m := &Middleware{cfg: Config{DropHeaders: []string{"X-Debug"}}}
	fields := toOctets(http.Header{"X-Vault-Token": {"s"}, "X-Debug": {"d"}, "X-Kept": {"k"}})
	w := httptest.NewRecorder()
	m.replay(w, &record{Status: 200, Header: fields})
	m.replay(w, &record{Status: 200, Added: fields})
	got := w.Header()
	w = httptest.NewRecorder()
	m.replay(w, &record{Status: 200, Trailer: fields})
	for _, h := range []http.Header{got, w.Result().Trailer} {
		if h.Get("X-Vault-Token") != "" || h.Get("X-Debug") != "" || h.Get("X-Kept") != "k" {
			t.Errorf("replayed %s", fmt.Sprint(h))
		}
	}
}
