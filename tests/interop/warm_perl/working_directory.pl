#!/usr/bin/perl
use Cwd;
print getcwd(), "\n";
chdir "lib" or die; print getcwd(), "\n";
open my $f, '>', "../written.txt" or die; print $f "x\n"; close $f;
printf "%04o\n", 07777 & (stat "../written.txt")[2];
umask 022; open $f, '>', "../other.txt"; close $f; printf "%04o\n", 07777 & (stat "../other.txt")[2];
