package failover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// limit bounds whatever a server is asked to do.
const limit = 30 * time.Second

// A Server is a PostgreSQL on a port of the loopback interface.
type Server struct {
	site     *site
	name     string // cluster_name, which is in the title of each of its processes
	data     string
	settings []string
	port     string
	cmd      *exec.Cmd
	exited   chan struct{} // closed when cmd has ended
}

// newServer names a server; its data is still to be made.
func (s *site) newServer(role string, settings ...string) *Server {
	name := fmt.Sprintf("%s-%d-%s", filepath.Base(s.dir), s.servers.Add(1), role)
	return &Server{site: s, name: name, data: filepath.Join(s.dir, name), settings: settings}
}

// dsn is for a superuser's connection to this server.
func (s *Server) dsn() string { return dsn("postgres", s.site.password, s.port) }

// Address is where the server listens.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", s.port) }

// dsn is for connections to the first of several servers that can be used. The
// bound is for a server that hangs.
func dsn(role, password string, ports ...string) string {
	hosts := strings.TrimSuffix(strings.Repeat("127.0.0.1,", len(ports)), ",")
	return fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=postgres sslmode=disable connect_timeout=3",
		hosts, strings.Join(ports, ","), role, password)
}

// start starts the server, on the port that it has if this is not the first
// time, and waits until it answers.
func (s *Server) start() (err error) {
	if s.port != "" {
		return s.launch()
	}
	for range 3 { // somebody else may get to the free port first
		if s.port, err = freePort(); err != nil {
			return err
		}
		if err = s.launch(); err == nil {
			return nil
		}
		if err := s.kill(); err != nil {
			return err
		}
	}
	return err
}

func (s *Server) launch() error {
	s.exited = make(chan struct{})
	log, err := os.OpenFile(s.data+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		close(s.exited)
		return err
	}
	defer log.Close()
	args := []string{"-D", s.data, "-p", s.port}
	for _, setting := range append([]string{
		"cluster_name=" + s.name,
		"listen_addresses=127.0.0.1",
		"unix_socket_directories=",
		"shared_buffers=32MB",
		"fsync=off", // what is killed here is a process, and the kernel keeps what it wrote
	}, s.settings...) {
		args = append(args, "-c", setting)
	}
	s.cmd = s.site.command(filepath.Join(s.site.bin, "postgres"), args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		close(s.exited)
		return err
	}
	go func(cmd *exec.Cmd, exited chan struct{}) {
		cmd.Wait()
		close(exited)
	}(s.cmd, s.exited)
	return s.waitReady()
}

func (s *Server) waitReady() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		var conn *pgx.Conn
		if conn, err = pgx.Connect(ctx, s.dsn()); err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-s.exited:
			return fmt.Errorf("postgres ended:\n%s", s.log())
		case <-ctx.Done():
			return fmt.Errorf("postgres does not answer: %w:\n%s", err, s.log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// log is the end of what the server has logged.
func (s *Server) log() string {
	text, err := os.ReadFile(s.data + ".log")
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// stop shuts the server down in good order.
func (s *Server) stop() error {
	s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.exited:
		return nil
	case <-time.After(limit):
		return errors.New("postgres does not stop:\n" + s.log())
	}
}

// kill ends the server as a power cut would.
func (s *Server) kill() error {
	if err := kill(s.name); err != nil {
		return err
	}
	<-s.exited
	return nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}
