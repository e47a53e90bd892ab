#!/usr/bin/perl
print "buffered before fork\n";
my $pid = fork;
if (!$pid) { print "child\n"; exit 4 }
waitpid $pid, 0;
print "status ", $? >> 8, "\n";
my $reader = open my $r, '-|';
if (!$reader) { print "through a pipe\n"; exit 0 }
print <$r>; close $r;
print "closed $?\n";
print "wait ", wait, "\n";
