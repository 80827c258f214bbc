#!/usr/bin/perl
# Net::Server::PreFork with a fixed number of children: `perl net_server.pl once|every CHILDREN`.
# Stock but for the backlog, and for `max_requests`, as nobody here replaces its workers by age.
package Bench;
use strict;
use warnings;
use base 'Net::Server::PreFork';

my ($form, $children) = @ARGV;
@ARGV = ();

sub process_request {
    if ($form eq 'every') {
        while (<STDIN>) { print "+PONG\r\n" }
    } else {
        my $line = <STDIN>;
        print "+PONG\r\n" if defined $line;
    }
}

sub pre_loop_hook {
    my $self = shift;
    my $port = $self->{server}{sock}[0]->sockport;
    print STDERR "net_server: ready on tcp://127.0.0.1:$port (pid $$, $children processes)\n";
}

Bench->run(
    host => '127.0.0.1', port => 0, ipv => 4, listen => 1024, log_level => 0, max_requests => 1_000_000_000,
    min_servers => $children, max_servers => $children, min_spare_servers => 0, max_spare_servers => $children - 1,
);
