package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// startEmbedded downloads a PostgreSQL, the newest that the library knows, and
// starts it.
func startEmbedded(ctx context.Context, set settings) (*database, error) {
	dir, err := os.MkdirTemp("", "testdb-")
	if err != nil {
		return nil, err
	}
	db, err := runEmbedded(ctx, set, dir)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return db, nil
}

func runEmbedded(ctx context.Context, set settings, dir string) (*database, error) {
	// The library leaves its log in the temporary folder, and downloads without
	// a bound.
	os.Setenv("TMPDIR", dir)
	http.DefaultClient.Transport = bounded{ctx}

	port, err := freePort()
	if err != nil {
		return nil, err
	}
	cfg, err := embeddedConfig(set, dir, port)
	if err != nil {
		return nil, err
	}
	server := embedded.NewDatabase(cfg)
	if err := server.Start(); err != nil {
		return nil, err
	}
	stop := func() {
		if err := server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "testdb:", err)
		}
	}
	url := cfg.GetConnectionURL() + "?sslmode=disable"
	v, err := version(ctx, url)
	if err != nil {
		stop()
		return nil, err
	}
	return &database{
		URL:   url,
		About: fmt.Sprintf("PostgreSQL %s, downloaded", v),
		close: func() {
			stop()
			os.RemoveAll(dir)
		},
	}, nil
}

func embeddedConfig(set settings, dir, port string) (embedded.Config, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return embedded.Config{}, err
	}
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return embedded.Config{}, err
	}
	cfg := embedded.DefaultConfig().
		Port(uint32(n)).
		Password(rand.Text()).
		Encoding("UTF8").
		Locale("C").
		CachePath(cachePath(dir)).
		RuntimePath(filepath.Join(dir, "server")).
		DataPath(filepath.Join(dir, "data")).
		Logger(log).
		StartParameters(map[string]string{
			"max_connections":         maxConnections,
			"unix_socket_directories": dir,
		})
	if set.Repository != "" {
		cfg = cfg.BinaryRepositoryURL(set.Repository)
	}
	return cfg, nil
}

// cachePath is where the download is kept for the next time. That is nowhere if
// the user has no home, as when root started us (see dropRoot).
func cachePath(dir string) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return dir
	}
	cache = filepath.Join(cache, "embedded-postgres")
	if os.MkdirAll(cache, 0o755) != nil {
		return dir
	}
	return cache
}

// bounded makes requests end with a context.
type bounded struct{ ctx context.Context }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	return http.DefaultTransport.RoundTrip(r.WithContext(b.ctx))
}
