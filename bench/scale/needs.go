package scale

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// What a row takes, roughly: the table, its indexes, and room for random ids,
// whose index pages are two thirds full.
const rowBytes = 900

// walBytes is what the server's write-ahead log grows to, with default settings.
const walBytes = 1 << 30

// fillPerSecond is a cautious guess.
const fillPerSecond = 25_000

// checkNeeds says what the run takes, and fails when the disk is too small.
func (b *bench) checkNeeds(ctx context.Context) error {
	need := b.Rows*rowBytes + walBytes
	const points = 16 // 3 sizes of 2 sections, 2 more of the last, with 1 and 8 callers
	measuring := time.Duration(points*2*(b.Rounds+1))*b.Slice + time.Duration(2*b.Pairs)*b.Window
	filling := time.Duration(float64(b.Rows) / fillPerSecond * float64(time.Second))
	took := time.Duration(len(allShapes)) * (filling + measuring)
	b.logf("%d tables of %d rows, one after another: about %d MB of disk, and roughly %v", len(allShapes), b.Rows, need>>20, took.Round(time.Minute))
	b.logf("each row takes a transaction id of the server")
	if !b.Kept {
		b.logf("the server goes away with this command: to be able to interrupt it and go on later, set DATABASE_URL to one that stays")
	}
	folder, free, err := b.free(ctx)
	switch {
	case err != nil:
		b.logf("how much disk is free cannot be seen from here (%v)", err)
	case free < need && !b.Force:
		return fmt.Errorf("%s has %d MB free, and about %d MB are needed: choose fewer -rows, or -force it", folder, free>>20, need>>20)
	default:
		b.logf("%s has %d MB free", folder, free>>20)
	}
	return nil
}

// free is the space for the server's data, less what this benchmark has there.
func (b *bench) free(ctx context.Context) (folder string, free int64, err error) {
	if b.server.Network != "unix" {
		return "", 0, fmt.Errorf("the server is not on this machine, or in a container")
	}
	if err := b.server.Admin.QueryRow(ctx, "select current_setting('data_directory')").Scan(&folder); err != nil {
		return "", 0, err
	}
	var used int64
	err = b.server.Admin.QueryRow(ctx, "select coalesce(sum(pg_database_size(oid)), 0)::bigint from pg_database where starts_with(datname, $1)", control).Scan(&used)
	if err != nil {
		return "", 0, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Clean(folder), &fs); err != nil {
		return "", 0, err
	}
	return folder, int64(fs.Bavail)*int64(fs.Bsize) + used, nil
}
