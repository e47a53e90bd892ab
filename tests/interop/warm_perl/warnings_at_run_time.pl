#!/usr/bin/perl -w
my $x;
print "a" . $x . "b\n";
print "5 apples" + 1, "\n";
print undef_function() if 0;
printf "%d\n", "abc";
