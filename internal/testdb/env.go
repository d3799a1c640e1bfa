package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

var errNotSet = errors.New("DATABASE_URL is not set")

// useEnv uses the server of DATABASE_URL.
func useEnv(ctx context.Context, _ settings) (*database, error) {
	url := os.Getenv("DATABASE_URL")
	if url == "" {
		return nil, errNotSet
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	v, err := version(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL is set, but its server cannot be used (unset it to have one started): %w", err)
	}
	return &database{
		URL:     url,
		Direct:  os.Getenv("DATABASE_URL_DIRECT"),
		Version: v,
		Where:   "from DATABASE_URL",
		close:   func() {},
	}, nil
}
