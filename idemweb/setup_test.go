package idemweb_test

import (
	"context"
	"os"
)

// What an example takes for granted.
var (
	ctx         = context.Background()
	databaseURL = os.Getenv("DATABASE_URL")
)
