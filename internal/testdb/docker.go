package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
)

// startDocker starts PostgreSQL in a container. The image must honour
// POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB as the official one does.
func startDocker(ctx context.Context, set settings) (*database, error) {
	log.SetDefault(log.NewNoopLogger())
	// Its reaper removes the containers of killed processes, which the keeper
	// does, too, and without one more image.
	os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	if err := checkDocker(ctx); err != nil {
		return nil, err
	}
	image := set.Image
	if image == "" {
		image = fmt.Sprint("postgres:", cmp.Or(set.Version, 18))
	}
	container, err := postgres.Run(ctx, image,
		postgres.WithUsername("postgres"),
		postgres.WithPassword(rand.Text()),
		postgres.WithDatabase("postgres"),
		testcontainers.WithCmd("postgres", "-c", "max_connections="+maxConnections), // fsync stays on
	)
	if err != nil {
		terminate(container)
		return nil, fmt.Errorf("%s: %w", image, err)
	}
	db, err := inContainer(ctx, container)
	if err != nil {
		err = fmt.Errorf("%s: %w%s", image, err, tail(containerLog(container)))
		terminate(container)
		return nil, err
	}
	db.Where = "in Docker from " + image
	return db, nil
}

// checkDocker fails soon where there is no Docker.
func checkDocker(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	return provider.Health(ctx)
}

// inContainer waits for the container's server.
func inContainer(ctx context.Context, container *postgres.PostgresContainer) (*database, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	url, err := container.ConnectionString(ctx, "sslmode=disable")
	if err != nil {
		return nil, err
	}
	v, err := waitReady(ctx, url)
	if err != nil {
		return nil, err
	}
	return &database{URL: url, Version: v, close: func() { terminate(container) }}, nil
}

func terminate(container *postgres.PostgresContainer) {
	if container == nil {
		return
	}
	if err := testcontainers.TerminateContainer(container, testcontainers.StopTimeout(0)); err != nil {
		fmt.Fprintln(os.Stderr, "testdb:", err)
	}
}

func containerLog(container *postgres.PostgresContainer) []byte {
	logs, err := container.Logs(context.Background())
	if err != nil {
		return nil
	}
	defer logs.Close()
	text, _ := io.ReadAll(logs)
	return text
}
