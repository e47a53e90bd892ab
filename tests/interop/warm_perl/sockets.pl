#!/usr/bin/perl
use IO::Socket::INET;
my $l = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die; 
my $pid = fork; if (!$pid) { my $c = $l->accept; print $c "hello over a socket\n"; exit }
my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $l->sockport); print <$s>; waitpid $pid, 0;
