#!/usr/bin/perl
# body: abcdefghij
my $n = sysread STDIN, my $b, 100;
print "$n $b\n";
print fileno(STDIN), fileno(STDOUT), fileno(STDERR), "\n";
